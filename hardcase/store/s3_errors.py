"""Explain an error of S3 or a disk in one line: S3's own code, and what to do about it."""

import re
from typing import Final

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

CODE: Final = re.compile(r"<Code>(\w+)</Code>|\((\w+)\) when calling")  # as obstore and as boto3 pass it on
EXPECTED_REGION: Final = re.compile(r"expecting &?(?:apos|#39)?;?'?([a-z0-9-]+)")
REDIRECTED: Final = "incorrectly configured region"  # obstore's words for S3's PermanentRedirect
REGION: Final = "set AWS_REGION to the region of the bucket"
REMEDIES: Final = {
    "AccessDenied": "let the role list, read and write there",
    "AllAccessDisabled": "ask the owner of the bucket for access",
    "AuthorizationHeaderMalformed": REGION,
    "ConditionalRequestConflict": "run again; others write the same name",
    "ExpiredToken": "renew the credentials: `aws sso login`, or a new session token",
    "IllegalLocationConstraintException": REGION,
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID or the profile",
    "InvalidToken": "check AWS_SESSION_TOKEN or the profile",
    "NoSuchBucket": "check the bucket's name, or create it",
    "PermanentRedirect": REGION,
    "RequestTimeTooSkewed": "set this machine's clock",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY or the profile",
    "SlowDown": "run again later, with fewer readers at once",
    "TokenRefreshRequired": "renew the credentials: `aws sso login`, or a new session token",
}

# By botocore's class of an error that no answer of S3 is the cause of.
LOCAL_REMEDIES: Final = {
    "EndpointConnectionError": "check AWS_ENDPOINT_URL, and whether it can be reached",
    "NoCredentialsError": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret",
    "PartialCredentialsError": "set both AWS_ACCESS_KEY_ID and its secret",
    "ProfileNotFound": "check AWS_PROFILE",
    "SSOTokenLoadError": "renew the credentials: `aws sso login`",
    "UnauthorizedSSOTokenError": "renew the credentials: `aws sso login`",
}


# Codes of AWS after which the same request may succeed.
PASSING: Final = {
    "ConditionalRequestConflict",
    "InternalError",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
}


def is_refusal(error: BaseException | None) -> bool:
    """Return whether S3 answered that a request is wrong or not allowed, so that it helps not to repeat it."""
    if code := find_code(error) if error else "":
        return code not in PASSING
    return isinstance(error, PermissionDeniedError | UnauthenticatedError)


def find_code(error: BaseException) -> str:
    """Return the code in S3's answer; empty where it is not S3's, or had no body."""
    if REDIRECTED in str(error):
        return "PermanentRedirect"
    match = CODE.search(str(error))
    return next(filter(None, match.groups()), "") if match else ""


def describe_error(error: Exception, remedy: str = "") -> str:
    """Return what failed in at most 200 characters and what to do: `remedy` where S3's code does not tell."""
    text, code = " ".join(str(error).partition("\n\nDebug source")[0].split()), find_code(error)
    if region := EXPECTED_REGION.search(text):
        return f"{code}: the bucket is in another region; set AWS_REGION={region[1]}"
    cause = f"{code}: {text[:160]}" if code else text[:200] or type(error).__name__
    remedy = REMEDIES.get(code) or LOCAL_REMEDIES.get(type(error).__name__, remedy)
    return f"{cause}; {remedy}" if remedy else cause
