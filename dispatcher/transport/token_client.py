"""Posts to token endpoints with the guarded transport: the same egress rules, TLS and limits as for webhooks."""

from dispatcher.auth.token_answers import MAX_ANSWER, TokenAnswer
from dispatcher.contract.outcomes import FailureReason, shown_to_tenants
from dispatcher.contract.values import HttpHeaders
from dispatcher.transport.endpoint import Endpoint
from dispatcher.transport.request import Request, Transport

CONNECT_TIMEOUT_S = 3.0
_MOST_ENDPOINTS = 10_000
_OUR_OWN = frozenset({FailureReason.LOCAL, FailureReason.PROXY, FailureReason.EGRESS_DENIED})


class TokenClient:
    """Implements the authentication package's `TokenEndpoint` with a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._endpoints: dict[str, Endpoint] = {}

    async def post_form(self, url: str, headers: HttpHeaders, body: bytes, timeout_s: float) -> TokenAnswer:
        """Posts a form. A failure before the answer is returned as an answer without a status."""
        if url not in self._endpoints:
            if len(self._endpoints) >= _MOST_ENDPOINTS:
                self._endpoints.clear()
            self._endpoints[url] = Endpoint.at(url)
        answered = await self._transport.post(
            Request(
                endpoint=self._endpoints[url],
                headers=headers,
                body=body,
                timeout_s=timeout_s,
                connect_timeout_s=min(CONNECT_TIMEOUT_S, timeout_s),
                content_type="application/x-www-form-urlencoded",
                keep_body=MAX_ANSWER,
                body_wait_s=timeout_s,  # the token is in the body
            )
        )
        attempt = shown_to_tenants(answered)
        detail = attempt.detail or (attempt.failure.value if attempt.failure else "")
        return TokenAnswer(attempt.status, attempt.body, detail, attempt.elapsed_s, attempt.failure in _OUR_OWN)
