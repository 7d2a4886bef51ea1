"""Write the bill of materials of an image (CycloneDX 1.6), and hold its size against a limit.

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
DESCRIBE = """
import json, platform
from importlib.metadata import distributions
status = open("/var/lib/dpkg/status", encoding="utf-8").read()
packages = [package.read_text("METADATA") or package.read_text("PKG-INFO") for package in distributions()]
print(json.dumps({"packages": packages, "status": status, "release": platform.freedesktop_os_release()}))
"""


def read_debian(status: str, release: dict[str, str]) -> Iterator[Component]:
    """Yield the packages that the distribution installed.

    Args:
        status: content of dpkg's file of that name.
        release: content of os-release.
    """
    for paragraph in filter(str.strip, status.split("\n\n")):
        fields = message_from_string(paragraph)
        if fields["Status"] != "install ok installed":
            continue
        qualifiers = {"arch": fields["Architecture"], "distro": f"{release['ID']}-{release['VERSION_ID']}"}
        yield Component(
            type=ComponentType.LIBRARY,
            name=fields["Package"],
            version=fields["Version"],
            bom_ref=f"{release['ID']}/{fields['Package']}@{fields['Version']}",
            purl=PackageURL("deb", release["ID"], fields["Package"], fields["Version"], qualifiers),
        )


def main(engine: str, image: str, out: str, limit: str = "") -> None:
    """Write the bill, and exit with a message where the image is too large."""
    command = [engine, "run", "--rm", "--network=none", "--read-only", image, "python3", "-c", DESCRIBE]
    content = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    debian = list(read_debian(content["status"], content["release"]))
    packages = [message_from_string(text) for text in content["packages"]]
    own = Message()  # the image as if it were a package that needs all the others
    own["Name"], _, own["Version"] = image.rpartition("/")[2].partition(":")
    for package in packages:
        own["Requires-Dist"] = package["Name"]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_bytes(bill([own, *packages], own["Name"], debian))  # type: ignore[list-item]
    inspect = [engine, "image", "inspect", "--format", "{{.Size}}", image]
    size = int(subprocess.run(inspect, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{image}: {size / 1e6:.0f} MB, {len(packages)} packages of Python, {len(debian)} of the distribution; {out}")
    if limit and size > int(limit):
        sys.exit(f"{image}: {size} bytes, more than the limit of {limit}")


if __name__ == "__main__":
    main(*sys.argv[1:])
