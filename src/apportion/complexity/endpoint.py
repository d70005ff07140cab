"""One OpenAI-compatible server: requests in turn, faults told apart, those that may pass tried again."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar

from ..errors import EndpointFailure, MissingExtra
from .pace import Pace

LARGEST_ANSWER = 2**20
"""Bytes; an answer is a few numbers."""

_SHORTEST_KEY = 8  # a shorter one may be a word of the settings by chance

_T = TypeVar("_T")


class NoAnswer(Exception):
    """One request came to nothing, for a reason that need not concern others."""


class Again(Exception):
    """What went wrong with a try may go well the next time.

    Args:
        wait: seconds that the server asks for.
        lost: whether there was no connection, rather than no good answer.
    """

    def __init__(self, reason: str, wait: float = 0.0, lost: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.lost = wait, lost


class Endpoint:
    """Chat completions of one server, for many threads. Use it in a ``with`` block.

    Args:
        url: up to and including ``/v1``.
        key_env: environment variable that holds the key; None for a server that wants none.
        per_minute: most requests in a minute.
        attempts: tries per request.
        timeout: seconds that an answer may take.
        backoff: seconds after the first failed try, doubled with each further one up to ``patience``.
        patience: longest wait between tries, in seconds; a server that asks for a longer one ends the run.

    Attributes:
        reached: whether it has ever answered, if only to refuse.

    Raises: ``EndpointFailure`` without the key, ``MissingExtra`` without httpx2.
    """

    def __init__(
        self,
        url: str,
        key_env: str | None,
        *,
        concurrency: int,
        per_minute: float,
        attempts: int,
        timeout: float,
        backoff: float,
        patience: float,
    ) -> None:
        try:
            import httpx2
        except ImportError:
            raise MissingExtra("asking a judge needs httpx2; install apportion[score]") from None
        self._http: Any = httpx2
        self._url, self._key_env, self._key = url, key_env, _read_key(key_env)
        self._concurrency, self._per_minute, self._attempts = concurrency, per_minute, attempts
        self._timeout, self._backoff, self._patience = timeout, backoff, patience
        self.reached = self._answered = False
        self._refused = 0
        self._random = random.Random()  # the caller's is left alone

    def check_no_key_in(self, settings: str) -> None:
        """Raises ``EndpointFailure`` if settings, which are kept with the answers, hold the key."""
        if len(self._key) >= _SHORTEST_KEY and self._key in settings:
            raise EndpointFailure(
                "a setting of the judge holds the key itself, and settings are kept with the scores; leave it in "
                f"the environment variable {self._key_env} alone"
            )

    def __enter__(self) -> Endpoint:
        self._pace = Pace(self._per_minute)
        self._client = self._http.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._http.Timeout(self._timeout),
            limits=self._http.Limits(max_connections=self._concurrency),
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def stop(self) -> None:
        """Begin no further try; those under way end."""
        self._pace.stop()

    def ask(self, body: Mapping[str, Any], read: Callable[[str], _T]) -> _T:
        """What ``read`` makes of the answer's text; it raises ``Again`` for one that is unusable.

        Raises: ``NoAnswer`` if this request fails, ``EndpointFailure`` if all would, ``pace.Stopped``.
        """
        for left in reversed(range(self._attempts)):
            self._pace.wait_turn()
            try:
                found = read(self._content(body))
            except Again as fault:
                self._give_up(fault, left)
                longest = min(self._patience, self._backoff * 2 ** (self._attempts - 1 - left))
                self._pace.rest(max(fault.wait, longest * self._random.uniform(0.5, 1.0)))
            else:
                self._answered = True
                return found
        raise AssertionError("the last try returns or raises")

    def _give_up(self, fault: Again, left: int) -> None:
        """Raise unless another try is worth it."""
        if fault.wait > self._patience:
            self._fail(f"asks to wait {fault.wait:,.0f} s", "run the same command again then; answers are kept")
        # An address that never answered is more likely wrong than busy.
        if (fault.lost and not self.reached) or (left == 0 and (fault.lost or not self.reached)):
            self._fail(f"cannot be reached ({fault})", "correct its url, or check the network and the proxy")
        if left == 0:
            raise NoAnswer(str(fault))

    def _content(self, body: Mapping[str, Any]) -> str:
        """The text of one answer."""
        try:
            response, raw = self._exchange(body)
        except (self._http.ConnectError, self._http.ConnectTimeout, self._http.ProxyError) as error:
            raise Again(self._clean(str(error)) or type(error).__name__, lost=True) from None
        except self._http.TimeoutException:
            raise Again(f"no answer within {self._timeout:g} s") from None
        except self._http.HTTPError as error:
            raise Again(self._clean(str(error)) or type(error).__name__) from None
        if not response.is_success:
            self._refuse(response, raw)
        try:
            content = json.loads(raw)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Again("an answer that is no chat completion") from None
        if not isinstance(content, str):
            raise Again("an answer without text")
        return content

    def _exchange(self, body: Mapping[str, Any]) -> tuple[Any, bytes]:
        """The response and its body. A body that trickles in for ever, or has no end, is cut off."""
        raw, deadline = bytearray(), time.monotonic() + self._timeout
        with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as response:
            self.reached = True
            for part in response.iter_bytes():
                raw += part
                if len(raw) > LARGEST_ANSWER:
                    raise Again(f"an answer of more than {LARGEST_ANSWER:,} bytes")
                if time.monotonic() > deadline:
                    raise Again(f"no answer within {self._timeout:g} s")
        return response, bytes(raw)

    def _refuse(self, response: Any, raw: bytes) -> NoReturn:
        """Raise what a status other than success means."""
        status, (message, code) = response.status_code, _error_in(raw)
        told = self._clean(f"{status}: {message}" if message else str(status))
        if status in (401, 403):
            remedy = f"set the environment variable {self._key_env} to a key that it takes"
            without = "name the environment variable that holds its key with key_env"
            self._fail(f"refuses the key ({told})", remedy if self._key_env else without)
        if status == 402 or code == "insufficient_quota":
            self._fail(f"has no credit left for this key ({told})", "top it up; answers so far are kept")
        if status in (404, 405) or 300 <= status < 400:
            self._fail(f"knows no such model or address ({told})", "correct model, or url (it often ends in /v1)")
        if status in (408, 409, 425, 429) or status >= 500:
            wait = _retry_after(response.headers.get("retry-after"))
            if status == 429 and wait <= self._patience:
                self._pace.hold(wait)
            raise Again(f"status {told}", wait)
        self._refused += 1
        if not self._answered and self._refused >= 3:
            self._fail(f"takes no request ({told})", "correct model, temperature, json_mode or extra")
        raise NoAnswer(f"refused with status {told}")

    def _fail(self, what: str, remedy: str) -> NoReturn:
        raise EndpointFailure(f"the endpoint {self._url} {what}; {remedy}")

    def _clean(self, message: str) -> str:
        """The first line, without the key: servers repeat it."""
        if self._key:
            message = message.replace(self._key, "[key]")
        return (message.strip().splitlines() or [""])[0][:200].rstrip(".")


def _read_key(name: str | None) -> str:
    if name is None:
        return ""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):  # it may be the key itself: never repeat it
        raise EndpointFailure("key_env names no environment variable; put the key in one, and give its name")
    key = os.environ.get(name, "").strip()
    if not key:
        raise EndpointFailure(
            f"the environment variable {name} is not set, so the judge has no key; set it, name another one with "
            "key_env, or set key_env to null for a server that wants none"
        )
    if not (key.isascii() and key.isprintable()):
        raise EndpointFailure(f"the key in {name} holds characters that no header can; set it again")
    return key


def _error_in(raw: bytes) -> tuple[str, str]:
    """What a refusal says, and its code, where it follows OpenAI's form."""
    with contextlib.suppress(ValueError, RecursionError):
        error = json.loads(raw)
        error = error.get("error", error) if isinstance(error, dict) else error
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or ""), str(error.get("code") or "")
        return str(error), ""
    return "", ""


def _retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for, which is a number or a date; 0 without a usable one."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return seconds if 0 < seconds < math.inf else 0.0
