"""Tell people of a run that ended badly: by a webhook, by mail, or both; where to is the environment's.

`HARDCASE_WEBHOOK`: a URL that takes JSON; `text` is what Slack, Mattermost and Teams' workflows show.
`HARDCASE_SMTP_HOST`, `HARDCASE_SMTP_PORT` (587), `HARDCASE_SMTP_USER`, `HARDCASE_SMTP_PASSWORD`, `HARDCASE_MAIL_FROM`,
`HARDCASE_MAIL_TO` (addresses, with commas): mail. With a user it is encrypted by STARTTLS, by TLS from the start on
port 465; without one it goes in clear, as to a relay beside us.
"""

import logging
import smtplib
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any

import requests

from hardcase.errors import HardcaseError, InputError
from hardcase.report.conclusion import Conclusion

PATIENCE = 30  # seconds
logger = logging.getLogger(__name__)


def notify(ended: Conclusion, environment: Mapping[str, str]) -> list[str]:
    """Tell by every way there is.

    Args:
        ended: how the run did.
        environment: where to, as above.

    Returns:
        The ways by which it was told.

    Raises:
        HardcaseError: some way failed; the others were tried.
    """
    told, failed = [], []
    for way, variable, send in (("webhook", "HARDCASE_WEBHOOK", _post), ("mail", "HARDCASE_SMTP_HOST", _mail)):
        if not environment.get(variable):
            continue
        try:
            send(ended, environment)
            told.append(way)
        except (OSError, HardcaseError) as error:  # requests' and smtplib's are OSErrors
            # The URL of a webhook is a secret, and requests' messages hold it.
            secret = environment.get("HARDCASE_WEBHOOK") if way == "webhook" else ""
            shown = type(error).__name__ if secret else str(error)
            failed.append(f"{way}: {shown}")
    if failed:
        raise HardcaseError(f"run {ended.run}: not told by {'; '.join(failed)}; mend its address or rights")
    return told


def _post(ended: Conclusion, environment: Mapping[str, str]) -> None:
    body: dict[str, Any] = {
        "text": f"{ended.headline}\n{ended.link}".strip(),
        "run": ended.run,
        "state": ended.state,
        "step": ended.step,
        "message": ended.message,
        "log": list(ended.log),
        "link": ended.link,
        "report": ended.report,
        "logs": ended.logs,
    }
    requests.post(environment["HARDCASE_WEBHOOK"], json=body, timeout=PATIENCE).raise_for_status()


def _mail(ended: Conclusion, environment: Mapping[str, str]) -> None:
    missing = [name for name in ("HARDCASE_MAIL_FROM", "HARDCASE_MAIL_TO") if not environment.get(name)]
    if missing:
        raise InputError(f"HARDCASE_SMTP_HOST is set, {' and '.join(missing)} not")
    message = EmailMessage()
    message["Subject"], message["From"] = ended.headline[:200], environment["HARDCASE_MAIL_FROM"]
    message["To"] = environment["HARDCASE_MAIL_TO"]
    message.set_content("\n".join([ended.headline, ended.link, ended.report, ended.logs, "", *ended.log]))
    host, port = environment["HARDCASE_SMTP_HOST"], int(environment.get("HARDCASE_SMTP_PORT") or 587)
    context = ssl.create_default_context()
    if port == 465:
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=PATIENCE, context=context)
    else:
        server = smtplib.SMTP(host, port, timeout=PATIENCE)
    with server:
        if user := environment.get("HARDCASE_SMTP_USER"):
            if port != 465:
                server.starttls(context=context)  # raises where there is none: no password goes in clear
            server.login(user, environment.get("HARDCASE_SMTP_PASSWORD", ""))
        server.send_message(message)
