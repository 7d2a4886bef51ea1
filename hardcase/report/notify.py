"""Notify people by webhook and by mail; the addresses come from the environment.

`HARDCASE_WEBHOOK`: a URL that takes JSON. Slack, Mattermost and Teams' workflows show its `text`.
`HARDCASE_SMTP_HOST`, `HARDCASE_SMTP_PORT` (587), `HARDCASE_SMTP_USER`, `HARDCASE_SMTP_PASSWORD`, `HARDCASE_MAIL_FROM`,
`HARDCASE_MAIL_TO` (addresses, separated by commas): mail. With a user the connection is encrypted by STARTTLS, or by
TLS from the start on port 465. Without a user it is not encrypted, as to a relay in the same network.
"""

import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from functools import partial
from typing import Any

import requests
from requests.utils import get_environ_proxies, select_proxy

from hardcase.addresses import require_host, split_url
from hardcase.errors import HardcaseError, InputError

TIMEOUT = 30  # seconds


@dataclass(frozen=True)
class Notice:
    """What people are notified of.

    `subject` is one line, `link` an address or empty. `lines` are the rest of the mail, `facts` of the webhook's JSON.
    """

    subject: str
    link: str = ""
    lines: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def notify(notice: Notice, environment: Mapping[str, str]) -> list[str]:
    """Notify over every channel named in the environment, and return them; all are tried before an error is raised."""
    sent, failed = [], []
    for channel, variable, send in (("webhook", "HARDCASE_WEBHOOK", _post), ("mail", "HARDCASE_SMTP_HOST", _mail)):
        if not environment.get(variable):
            continue
        try:
            send(notice, environment)
            sent.append(channel)
        except (OSError, HardcaseError) as error:  # requests' and smtplib's are OSErrors
            # The URL of a webhook is a secret, and requests' messages hold it.
            failed.append(f"{channel}: {type(error).__name__ if channel == 'webhook' else error}")
    if failed:
        raise HardcaseError(f"no notification by {'; '.join(failed)}; correct its address or rights: {notice.subject}")
    return sent


def check_channels(environment: Mapping[str, str]) -> None:
    """Refuse addresses of the environment that no notification can reach.

    The URL of a webhook is a secret. Where a proxy leads to it, the proxy finds its host.
    """
    if webhook := environment.get("HARDCASE_WEBHOOK"):
        if (address := split_url(webhook)) is None:
            raise InputError("HARDCASE_WEBHOOK: no URL of http or https; correct it, or unset it")
        if not select_proxy(webhook, get_environ_proxies(webhook)):
            require_host("HARDCASE_WEBHOOK", *address)
    if environment.get("HARDCASE_SMTP_HOST"):
        require_host("HARDCASE_SMTP_HOST", *_read_mail_server(environment))


def _read_mail_server(environment: Mapping[str, str]) -> tuple[str, int]:
    """Return host and port of the mail server; raise `InputError` if an address is missing or the port is no port."""
    names = ("HARDCASE_MAIL_FROM", "HARDCASE_MAIL_TO")
    if missing := [name for name in names if not environment.get(name, "").isprintable() or not environment.get(name)]:
        raise InputError(f"HARDCASE_SMTP_HOST is set, {' and '.join(missing)} not, or not to an address")
    port = environment.get("HARDCASE_SMTP_PORT") or "587"
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise InputError(f"HARDCASE_SMTP_PORT={port}: no port; correct it, or unset it")
    return environment["HARDCASE_SMTP_HOST"], int(port)


def _post(notice: Notice, environment: Mapping[str, str]) -> None:
    body = {"text": f"{notice.subject}\n{notice.link}".strip(), **notice.facts}
    requests.post(environment["HARDCASE_WEBHOOK"], json=body, timeout=TIMEOUT).raise_for_status()


def _mail(notice: Notice, environment: Mapping[str, str]) -> None:
    host, port = _read_mail_server(environment)
    message = EmailMessage()
    message["Subject"], message["From"] = notice.subject[:200], environment["HARDCASE_MAIL_FROM"]
    message["To"] = environment["HARDCASE_MAIL_TO"]
    message.set_content("\n".join([notice.subject, notice.link, *notice.lines]))
    context = ssl.create_default_context()
    connect = partial(smtplib.SMTP_SSL, context=context) if port == 465 else smtplib.SMTP
    with connect(host, port, timeout=TIMEOUT) as server:
        if user := environment.get("HARDCASE_SMTP_USER"):
            if port != 465:
                server.starttls(context=context)  # raises where there is none: no password goes in clear
            server.login(user, environment.get("HARDCASE_SMTP_PASSWORD", ""))
        server.send_message(message)
