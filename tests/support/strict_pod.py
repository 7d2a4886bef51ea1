"""Run a command as a strict cluster runs a step: read-only root, a user by number without a name, no capabilities.

unshare --user --map-root-user --mount python tests/support/strict_pod.py ROOT COMMAND...

/cache, /tmp and /dev/shm are empty and writable, as a pod's volumes are. Namespaces of user and mount stand for the
container, so neither root nor an engine is needed. The command gets the environment of this process.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

USER = 54321
VOLUMES = ("cache", "tmp", "dev/shm")
MOUNT_SETATTR = 442  # number of the system call on every architecture, Linux 5.12 and later
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 1


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def bind(place: Path, root: Path) -> None:
    """Show a file or folder of this machine at the same path below `root`."""
    below = root / place.relative_to("/")
    if place.is_symlink():
        below.symlink_to(place.readlink())
    elif place.is_dir():
        below.mkdir(parents=True)
        mount("--rbind", place, below)


def make_read_only(root: Path) -> None:
    """Make every mount below `root` read-only."""
    attributes = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(MOUNT_SETATTR, AT_FDCWD, bytes(root), AT_RECURSIVE, attributes, ctypes.sizeof(attributes)):
        raise OSError(ctypes.get_errno(), "mount_setattr", str(root))


def main(root: Path, command: list[str]) -> None:
    """Build the root of the pod in a folder, then become the command in it."""
    checkout = Path(__file__).parents[2]
    mount("-t", "tmpfs", "root", root)
    for place in Path("/").iterdir():
        if place.name not in VOLUMES:
            bind(place, root)
    for volume in VOLUMES:
        (root / volume).mkdir(exist_ok=True)
    make_read_only(root)
    for volume in VOLUMES:
        mount("-t", "tmpfs", "-o", "mode=1777", volume, root / volume)
    # What a volume covers of that with which the tests run.
    for place in (checkout, Path(sys.prefix), Path(sys.base_prefix)):
        if not (root / place.relative_to("/")).exists():
            bind(place, root)
            make_read_only(root / place.relative_to("/"))
    os.execvp(
        "unshare", ["unshare", "--user", f"--map-user={USER}", "--map-group=0", f"--root={root}", "--wd=/tmp", *command]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
