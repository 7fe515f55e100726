"""The address of a ledger, shown in messages without its password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import exc
from sqlalchemy.engine import make_url

from bpfree.lab.errors import LedgerError

_SECRET = ("password", "passwd", "sslpassword")  # parameters of a URL that hold one, beside its own place
_HIDDEN = "***"
_DRIVERS = {
    "postgresql": "pip install 'bpfree[postgresql]'",
    "mysql": "pip install pymysql, and begin the URL with mysql+pymysql://",
    "mariadb": "pip install pymysql, and begin the URL with mariadb+pymysql://",
}


@dataclass(frozen=True)
class Address:
    """A database's URL, and how it is shown.

    Attributes:
        url: The URL.
        shown: The same without its password; of a file its path.
        secrets: Texts that no message may show.
    """

    url: str
    shown: str
    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, place: str) -> Address:
        """Return the address of a URL, or of the path of an SQLite file.

        Raises:
            LedgerError: The URL cannot be read, or the file's folder cannot be made.
        """
        if "://" not in place:
            return cls(f"sqlite:///{_file(Path(place).expanduser())}", place)
        try:
            url = make_url(place)
        except (exc.ArgumentError, ValueError):
            shown = re.sub(r"(://[^:@/]*):.*@", rf"\1:{_HIDDEN}@", place)
            # Not what the reader says of it, and not as its cause: both may hold a part of the password.
            raise LedgerError(
                f"--ledger {shown} is no URL of a database. It is written postgresql://USER:PASSWORD@HOST/NAME; in a "
                "password @ is %40 and / is %2F."
            ) from None
        inside = [str(url.query[name]) for name in _SECRET if name in url.query]
        secrets = tuple(word for word in (url.password, *inside) if word)
        hidden = url.update_query_dict({name: _HIDDEN for name in _SECRET if name in url.query})
        return cls(place, hidden.render_as_string(hide_password=True), secrets)

    def without_secrets(self, text: object) -> str:
        """Return a message without its secrets."""
        said = str(text)
        for secret in self.secrets:
            said = said.replace(secret, _HIDDEN)
        return said

    @property
    def named(self) -> str:
        """The address with a space before it, to follow a noun; empty if it is not known."""
        return f" {self.shown}" if self.shown else ""

    @property
    def is_file(self) -> bool:
        """True if it is a file of SQLite."""
        return self.url.startswith("sqlite")

    @property
    def driver(self) -> str | None:
        """The command that installs the driver of the database; None if it is not known."""
        return _DRIVERS.get(re.split(r"[+:]", self.url)[0])


def _file(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"--ledger {path}: its folder cannot be made ({error.strerror}).") from error
    return path
