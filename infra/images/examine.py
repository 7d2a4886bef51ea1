"""What is in an image: its bill of materials (CycloneDX 1.6), and its size held against a limit.

python infra/images/examine.py ENGINE IMAGE BILL [LIMIT]     LIMIT in bytes
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

from cyclonedx.model.component import Component, ComponentType
from packageurl import PackageURL

from hardcase.provenance.sbom import bill

# Runs in the image, with nothing but Python.
TELL = """
import json, platform
from importlib.metadata import distributions
status = open("/var/lib/dpkg/status", encoding="utf-8").read()
packages = [found.read_text("METADATA") or found.read_text("PKG-INFO") for found in distributions()]
print(json.dumps({"packages": packages, "status": status, "release": platform.freedesktop_os_release()}))
"""


def system(status: str, release: dict[str, str]) -> Iterator[Component]:
    """What the distribution installed.

    Args:
        status: the content of dpkg's file of that name.
        release: of os-release.
    """
    for paragraph in filter(str.strip, status.split("\n\n")):
        told = message_from_string(paragraph)
        if told["Status"] != "install ok installed":
            continue
        qualifiers = {"arch": told["Architecture"], "distro": f"{release['ID']}-{release['VERSION_ID']}"}
        yield Component(
            type=ComponentType.LIBRARY,
            name=told["Package"],
            version=told["Version"],
            bom_ref=f"{release['ID']}/{told['Package']}@{told['Version']}",
            purl=PackageURL("deb", release["ID"], told["Package"], told["Version"], qualifiers),
        )


def main(engine: str, image: str, out: str, limit: str = "") -> None:
    """Write the bill; leave with a message where the image is too big."""
    command = [engine, "run", "--rm", "--network=none", "--read-only", image, "python3", "-c", TELL]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    debian = list(system(told["status"], told["release"]))
    packages = [message_from_string(text) for text in told["packages"]]
    own = Message()  # the image as if it were a package that needs all the others
    own["Name"], _, own["Version"] = image.rpartition("/")[2].partition(":")
    for package in packages:
        own["Requires-Dist"] = package["Name"]
    written = bill([own, *packages], own["Name"], debian)  # type: ignore[list-item]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(written)
    inspect = [engine, "image", "inspect", "--format", "{{.Size}}", image]
    size = int(subprocess.run(inspect, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{image}: {size / 1e6:.0f} MB, {len(packages)} packages of Python, {len(debian)} of the distribution; {out}")
    if limit and size > int(limit):
        sys.exit(f"{image}: {size} bytes, more than the {limit} that it may have")


if __name__ == "__main__":
    main(*sys.argv[1:])
