"""A step that was to get GPUs and sees none ends at once."""

import pytest

from hardcase.errors import InputError
from hardcase.runtime.devices import require_gpus


def test_a_step_that_sees_fewer_gpus_than_its_pod_was_to_get_is_refused() -> None:
    with pytest.raises(InputError, match=r"was to get 64 GPUs and sees \d+: .* device plugin"):
        require_gpus("64")
    require_gpus("")
