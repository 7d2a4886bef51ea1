"""An error of S3 is told by its own code and what to do, as obstore and boto3 pass it on."""

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from hardcase.store.s3_errors import LOCAL_REMEDIES, REMEDIES, describe_error

# What obstore 0.11 raises: the answer's code comes after the request, and a dump of the error after that.
REQUEST = "Generic S3 error: Error performing GET http://127.0.0.1:9000/bucket/" + "p" * 300 + " in 2.5ms"
ANSWER = (
    '{request} - Server returned non-2xx status code: 403 Forbidden: <?xml version="1.0" encoding="UTF-8"?>\n'
    "<Error><Code>{code}</Code><Message>no</Message></Error>\n\nDebug source:\nGeneric {{ secret }}"
)


@pytest.mark.parametrize("code", sorted(REMEDIES))
def test_every_known_code_is_named_with_its_remedy(code: str) -> None:
    message = describe_error(ValueError(ANSWER.format(request=REQUEST, code=code)), "fix permissions")
    assert message.startswith(f"{code}: ")
    assert message.endswith(f"; {REMEDIES[code]}")
    assert len(message) < 300
    from_boto = f"An error occurred ({code}) when calling the PutObject operation: no"
    assert describe_error(ValueError(from_boto)) == f"{code}: {from_boto}; {REMEDIES[code]}"


def test_an_unknown_code_is_named_with_what_the_caller_advises() -> None:
    message = describe_error(ValueError(ANSWER.format(request=REQUEST, code="QuotaExceeded")), "free space")
    assert (message[:15], message[-12:]) == ("QuotaExceeded: ", "; free space")


def test_another_region_is_named() -> None:
    body = "the region 'us-east-1' is wrong; expecting 'eu-west-1'"
    error = ValueError(f"x - 400: <Error><Code>AuthorizationHeaderMalformed</Code><Message>{body}</Message></Error>")
    assert describe_error(error).endswith("the bucket is in another region; set AWS_REGION=eu-west-1")
    redirected = "Received redirect without LOCATION, this normally indicates an incorrectly configured region"
    assert describe_error(ValueError(redirected)).endswith("; set AWS_REGION to the region of the bucket")


def test_other_errors_keep_their_text() -> None:
    assert describe_error(OSError(28, "No space left on device"), "free space").endswith(
        "No space left on device; free space"
    )
    assert describe_error(TimeoutError()) == "TimeoutError"


def test_credentials_that_are_missing_or_an_endpoint_that_is_away_are_told_apart() -> None:
    assert describe_error(NoCredentialsError(), "check it").endswith(
        "credentials; " + LOCAL_REMEDIES["NoCredentialsError"]
    )
    away = EndpointConnectionError(endpoint_url="http://127.0.0.1:1/bucket")
    assert describe_error(away, "check it").endswith("; check AWS_ENDPOINT_URL, and whether it can be reached")
