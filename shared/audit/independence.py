"""Says whether signed checkpoints are kept out of reach of who owns the database. It reads none of them.

It says so only where it surely is: another partition of the same machine is in the same hands, and so is an
object store that runs there. Where one runs is known from its address alone.
"""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.engine import make_url

from shared.settings import Settings
from shared.storage import Storage

#: Names of this machine; so may be any without a dot, such as that of a container beside.
_HERE = re.compile(r"localhost\.localdomain|.+\.localhost|host\.docker\.internal")
#: Say where a bucket is that is not Amazon's; the first that is set counts, as it does for botocore.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_BUCKET = "the checkpoints are kept in a bucket that may be on the machine of the database"
_MOUNTS = Path("/proc/self/mountinfo")
#: Kinds of file systems that are another machine's, as Linux names them.
_NETWORK = re.compile(
    r"nfs4?|cifs|smb3|smbfs|ceph|lustre|afs|beegfs|glusterfs|gpfs|"
    r"fuse\.(sshfs|s3fs|rclone|glusterfs|ceph|gcsfuse|blobfuse2?|mount-s3|goofys)"
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def dependence(settings: Settings) -> str | None:
    """Why the second place proves nothing against who owns the database's disk; None when it does."""
    url = settings.checkpoint_url
    database = make_url(settings.database_url)
    if not Storage.of_checkpoints(settings).is_local:
        server = _server_of(url)
        return _BUCKET if server is not None and _may_share(server, _named(database.host)) else None
    if database.get_backend_name() != "sqlite":
        if _is_elsewhere(_named(database.host)):
            return None
        return "the checkpoints are kept in a folder that may be on the machine of the database"
    folder, file = Path(urlsplit(url).path), Path(database.database or "")
    if _device(folder) == _device(file):
        return "the checkpoints are kept on the disk of the database"
    mounts = _MOUNTS.read_text(errors="surrogateescape") if _MOUNTS.exists() else ""
    if not is_network(folder, mounts):
        return "the checkpoints are kept on the machine of the database"
    return None


def is_network(path: Path, mounts: str) -> bool:
    """Whether the path is surely on another machine, by the table of mounts (proc_pid_mountinfo(5))."""
    path, kind, deepest = path.resolve(), "", -1
    for line in mounts.splitlines():
        here, _, there = line.partition(" - ")
        fields = here.split(" ")
        if len(fields) < 5 or not there:
            continue
        point = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= deepest:  # the later one lies on top
            kind, deepest = there.partition(" ")[0], len(point.parts)
    return _NETWORK.fullmatch(kind) is not None


def _server_of(url: str) -> str | None:
    """The host that the bucket is on; None for one of a large provider's."""
    if urlsplit(url).scheme not in ("s3", "s3a"):
        return None
    endpoint = next(filter(None, map(os.environ.get, _ENDPOINTS)), None)
    return None if endpoint is None else _named(urlsplit(endpoint).hostname)


def _may_share(store: str, database: str) -> bool:
    """Whether a server may be the machine with the database."""
    names = [database] if _is_elsewhere(database) else [database, _named(socket.gethostname())]
    same = any(name and f"{store}.".startswith(f"{name}.") for name in names)  # with its domain or without
    return same or not _is_elsewhere(store)


def _is_elsewhere(host: str) -> bool:
    """Whether a host is surely not this machine, nor one that is known only on its own."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." in host and not _HERE.fullmatch(host)
    return not (address.is_loopback or address.is_unspecified or _is_of_this_machine(host))


def _is_of_this_machine(address: str) -> bool:
    """Whether an IP address is one of this machine's: no other can be listened on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as tried:
            tried.bind((address, 0))
    except OSError:
        return False
    return True


def _named(host: str | None) -> str:
    """A name of a host as it is compared; empty for one that is not named, such as by a socket."""
    return (host or "").lower().rstrip(".")


def _device(path: Path) -> int:
    """The number of the disk that the path is on, or will be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_dev
