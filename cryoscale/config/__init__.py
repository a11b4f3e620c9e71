"""What a run is asked to do: one validated model per stage, and TOML in and out."""

from cryoscale.config.run import RunConfig
from cryoscale.config.toml import apply_settings, dump_config, load_config

__all__ = ["RunConfig", "apply_settings", "dump_config", "load_config"]
