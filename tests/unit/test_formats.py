"""Format versions: a record of a newer hardcase asks for an upgrade, and is never taken for a damaged one."""

import pytest

from hardcase.formats import NewerFormatError, check_format, check_type


@pytest.mark.parametrize("written", [1, 2])
def test_known_format_is_read(written: int) -> None:
    assert check_format(written, 2, "it") == check_type(f"urn:x:v{written}", "urn:x:", 2, "it") == written


def test_newer_format_says_both_versions_and_to_upgrade() -> None:
    message = r"^it: written by a newer hardcase \(format 3, this one reads up to 2\); upgrade hardcase$"
    with pytest.raises(NewerFormatError, match=message) as error:
        check_format(3, 2, "it")
    assert error.value.exit_code == 2
    with pytest.raises(NewerFormatError, match=message):
        check_type("urn:x:v3", "urn:x:", 2, "it")


@pytest.mark.parametrize("written", [0, -1, True, "2", None, 1.0, [1]])
def test_what_is_no_version_is_no_newer_format(written: object) -> None:
    with pytest.raises(ValueError, match="is not a version"):
        check_format(written, 2, "it")


@pytest.mark.parametrize(
    "uri", ["urn:y:v3", "urn:x:v", "urn:x:v3a", "urn:x:vv3", "urn:x:3", "urn:x:v٣", "urn:x:v0", None, 3]
)
def test_another_type_is_no_newer_format(uri: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        check_type(uri, "urn:x:", 2, "it")
