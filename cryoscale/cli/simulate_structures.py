"""`cryoscale simulate structures`: molecular structures by id, for densities."""

from __future__ import annotations

import click


@click.command("structures")
@click.argument("ids", nargs=-1, required=True)
@click.option("--to", "folder", metavar="FOLDER", help="Where to keep them; the user's cache by default.")
@click.option("--url", metavar="URL", help="Where to fetch them from, instead of the RCSB.")
@click.option("--checksums", metavar="FILE", help="Expected SHA-256, as sha256sum writes them.")
@click.option("--timeout", type=float, default=30.0, show_default=True, metavar="S", help="Longest silence.")
@click.option("--offline", is_flag=True, help="Fetch nothing; check what is there.")
def structures_command(
    ids: tuple[str, ...],
    folder: str | None,
    url: str | None,
    checksums: str | None,
    timeout: float,
    offline: bool,
) -> int:
    """Fetch structures by their ids in the Protein Data Bank (mmCIF, gzipped) and print the files.

    What is there already is checked and not fetched again. Without a network, put the files there yourself.
    """
    from cryoscale.simulate.download import download_structures, read_checksums

    expected = read_checksums(checksums) if checksums is not None else None
    result = download_structures(
        ids, folder, base_url=url, checksums=expected, timeout=timeout, offline=offline
    )
    for asked in ids:
        if asked in result.files:
            click.echo(result.files[asked])
    for asked, error in result.failures.items():
        click.echo(f"{asked}: {error}", err=True)
    return 1 if result.failures else 0
