"""Certificates for Dask and the token for Ray: made once, kept in a folder that only its owner may read.

Whoever holds the folder can run code on every member of the cluster, and nobody else can. All members share
one certificate; Dask asks for it on both sides of every connection. Values are read from the files by the
engines themselves: command lines, settings and logs carry paths.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryoscale.errors import ConfigurationError, SurroundingsError

if TYPE_CHECKING:
    from cryptography import x509

CA, CERTIFICATE, KEY, TOKEN = "ca.pem", "cert.pem", "key.pem", "ray-token"
MEMBER = "cryoscale-member"  # the name in the certificate of all members
DAYS = 365

_CLOCKS_DIFFER = timedelta(days=1)  # valid from yesterday: clocks of machines differ
_CREATE = "Make a folder of them with `cryoscale engine secrets FOLDER`, and copy it to every machine."


@dataclass(frozen=True)
class Secrets:
    """A folder with `ca.pem`, `cert.pem`, `key.pem` and `ray-token`.

    Get one from `create` or `open`. The certificate (EC P-256) is one for all members, as server and client.
    """

    folder: Path

    @classmethod
    def create(cls, folder: str | os.PathLike[str], days: int = DAYS, hosts: Sequence[str] = ()) -> Secrets:
        """Make new secrets in a folder that does not exist or is empty.

        Parameters
        ----------
        folder : path
            Gets the mode 0700, its files 0600.
        days : int
            How long the certificates are valid, from now on.
        hosts : sequence of str
            Addresses of all members. With them Ray encrypts too: unlike Dask it compares them.

        Raises
        ------
        ConfigurationError
            If there is something in the folder already, or `days` is not positive.
        """
        place = Path(folder).absolute()
        if days < 1:
            raise ConfigurationError(f"certificates must be valid for at least 1 day, got {days}.")
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise ConfigurationError(
                f"{place} exists and is not an empty folder.",
                remedy="New secrets lock out members that hold the old ones: choose another folder.",
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        # Made beside and renamed: a folder of secrets is whole or not there.
        made = Path(tempfile.mkdtemp(prefix=".secrets-", dir=place.parent))
        try:
            for name, content in _certificates(days, hosts).items():
                _write_private(made / name, content)
            _write_private(made / TOKEN, secrets.token_hex(32).encode())
            made.rename(place)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return cls(place)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Secrets:
        """Take a folder of secrets, after a look at its files, their modes and dates.

        The certificates may be missing where only Ray is asked, the token where Ray gets it from the
        environment; `has_certificates` and `has_token` say which are there.

        Raises
        ------
        ConfigurationError
            If a file is missing or unreadable, or others may read what is private.
        SurroundingsError
            If the certificate is not valid today.
        """
        found = cls(Path(folder).absolute())
        names = {name for name in (CA, CERTIFICATE, KEY, TOKEN) if (found.folder / name).is_file()}
        if not names:
            raise ConfigurationError(f"there are no secrets in {found.folder}.", remedy=_CREATE)
        if missing := ({CA, CERTIFICATE, KEY} - names if names != {TOKEN} else set()):
            raise ConfigurationError(
                f"in the secrets {found.folder} there is no {', '.join(sorted(missing))}.", remedy=_CREATE
            )
        for name in sorted(names & {KEY, TOKEN}):
            _require_private(found.folder / name)
        if found.has_certificates:
            _require_valid(found.folder)
        return found

    @property
    def has_certificates(self) -> bool:
        """Whether Dask's part is there."""
        return (self.folder / KEY).is_file()

    @property
    def has_token(self) -> bool:
        """Whether Ray's part is there."""
        return (self.folder / TOKEN).is_file()

    @property
    def valid_until(self) -> datetime:
        """The last moment at which the certificate is good."""
        return _load_certificate(self.folder / CERTIFICATE).not_valid_after_utc

    def dask_security(self) -> Any:
        """Return a `distributed.Security` that speaks TLS only, with the certificate on both sides.

        Raises
        ------
        ConfigurationError
            If the folder holds a token alone.
        """
        import ssl

        from distributed import Security

        self._require_certificates()
        pair = {
            f"tls_{role}_{part}": str(self.folder / name)
            for role in ("client", "scheduler", "worker")
            for part, name in (("cert", CERTIFICATE), ("key", KEY))
        }
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.folder / CA),
            tls_min_version=ssl.TLSVersion.TLSv1_3,
            **pair,
        )

    def environment(self) -> dict[str, str]:
        """Return variables that make child processes speak TLS (Dask) and show the token (Ray)."""
        variables: dict[str, str] = {}
        if self.has_certificates:
            variables = {
                "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
                "DASK_DISTRIBUTED__COMM__TLS__MIN_VERSION": "1.3",
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": str(self.folder / CA),
            }
            for role in ("CLIENT", "SCHEDULER", "WORKER"):
                variables[f"DASK_DISTRIBUTED__COMM__TLS__{role}__CERT"] = str(self.folder / CERTIFICATE)
                variables[f"DASK_DISTRIBUTED__COMM__TLS__{role}__KEY"] = str(self.folder / KEY)
        return {**variables, **self.ray_environment()}

    def ray_environment(self) -> dict[str, str]:
        """Return the variables for Ray alone; those of this process stand where the folder has no token.

        With TLS besides the token if the certificate names the members, so that all of them decide alike.
        """
        variables: dict[str, str] = {}
        if self.has_token:
            variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / TOKEN)}
        if self.hosts:
            files = {"SERVER_CERT": CERTIFICATE, "SERVER_KEY": KEY, "CA_CERT": CA}
            variables["RAY_USE_TLS"] = "1"
            variables |= {f"RAY_TLS_{word}": str(self.folder / name) for word, name in files.items()}
        return variables

    @property
    def hosts(self) -> tuple[str, ...]:
        """Addresses of members that the certificate names; empty if it is good for any."""
        from cryptography import x509

        if not self.has_certificates:
            return ()
        certificate = _load_certificate(self.folder / CERTIFICATE)
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        return tuple(str(name.value) for name in names if str(name.value) != MEMBER)

    def tls_context(self, *, server: bool = False) -> Any:
        """Return an `ssl.SSLContext` that shows our certificate and demands one of the same CA.

        Members are known by their certificate, not by their address.
        """
        import ssl

        self._require_certificates()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.folder / CA)
        context.load_cert_chain(self.folder / CERTIFICATE, self.folder / KEY)
        return context

    def require_member(self, host: str) -> None:
        """Refuse an address that the certificate does not name, where it names any: Ray's members compare.

        Raises
        ------
        ConfigurationError
            Naming the address and those of the certificate.
        """
        if self.hosts and host not in self.hosts:
            raise ConfigurationError(
                f"the certificate in {self.folder} is for {', '.join(self.hosts)}, not for {host}.",
                remedy="Make new secrets with a --host for every member and the driver, or without --host: "
                "then Ray's traffic is not encrypted, and any address may join.",
            )

    def _require_certificates(self) -> None:
        if not self.has_certificates:
            raise ConfigurationError(
                f"the secrets {self.folder} hold no certificates, and Dask needs them.", remedy=_CREATE
            )


def _write_private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _require_private(path: Path) -> None:
    try:
        status = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from error
    if not status.st_mode & 0o077:
        return
    # Kubernetes mounts secrets read-only, owned by root, with modes like 0440 (fsGroup); chmod is impossible.
    mounted = status.st_uid == 0 and os.statvfs(path).f_flag & os.ST_RDONLY
    if not mounted or status.st_mode & 0o022:
        raise ConfigurationError(
            f"others may read {path} (mode {status.st_mode & 0o777:04o}): who does can run code as you.",
            remedy=f"Make new secrets, or if nobody can have read them: chmod 600 {path}",
        )


def _require_valid(folder: Path) -> None:
    now = datetime.now(UTC)
    for name in (CA, CERTIFICATE):
        certificate = _load_certificate(folder / name)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            raise SurroundingsError(
                f"the certificate {folder / name} is valid from {first:%Y-%m-%d %H:%M} to "
                f"{last:%Y-%m-%d %H:%M} UTC, and now it is {now:%Y-%m-%d %H:%M}.",
                remedy="Make new secrets for all (`cryoscale engine secrets`), or set the clock here.",
            )


def _load_certificate(path: Path) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is not a readable PEM certificate ({error}).", remedy=_CREATE
        ) from error


def _certificates(days: int, hosts: Sequence[str]) -> dict[str, bytes]:
    """Make a CA and one certificate; the CA's own key is not kept, so nobody can make another member's."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, member = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    dates = (datetime.now(UTC) - _CLOCKS_DIFFER, datetime.now(UTC) + timedelta(days=days))
    root = _sign_authority(authority, dates)
    certificate = _sign_member(member, authority, root, dates, hosts)
    pem = serialization.Encoding.PEM
    key = member.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return {CA: root.public_bytes(pem), CERTIFICATE: certificate.public_bytes(pem), KEY: key}


def _sign_authority(key: Any, dates: tuple[datetime, datetime]) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    # A random part in the name: a CA of the same name and another key gives misleading errors.
    name = _name(f"cryoscale-ca-{secrets.token_hex(4)}")
    return (
        _builder(name, name, key.public_key(), dates)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _sign_member(
    key: Any, authority: Any, root: x509.Certificate, dates: tuple[datetime, datetime], hosts: Sequence[str]
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    local = ("127.0.0.1", "localhost") if hosts else ()
    names = [_alternative(host) for host in dict.fromkeys((MEMBER, *hosts, *local))]
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    return (
        _builder(_name(MEMBER), root.subject, key.public_key(), dates)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(both, critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority, hashes.SHA256())
    )


def _builder(
    name: x509.Name, issuer: x509.Name, public: Any, dates: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(dates[0])
        .not_valid_after(dates[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip
