"""The egress guard: spellings of hosts, kinds of address, what a name resolves to, and what the operator says."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.config.settings import DeliverySettings, EgressSettings
from dispatcher.config.webhooks import WebhookConfig
from dispatcher.contract.outcomes import FailureReason
from dispatcher.transport import EgressGuard, Endpoint, Request, egress_problems, open_transport
from dispatcher.transport.egress import nameserver
from dispatcher.transport.failures import TransportError
from dispatcher.transport.happy_eyeballs import connect_first
from dispatcher.transport.request_head import HeaderBlock
from dispatcher.transport.resolver import Resolver
from tests.transport.servers import NameServer

DEFAULT = EgressGuard(EgressSettings())


def words(text: str) -> list[str]:
    """A table, one word an entry."""
    return text.split()


ODD_SPELLINGS = words(
    r"""
2130706433 0x7f000001 0x7F.0.0.1 0177.0.0.1 017700000001 127.1 127.0.1 0x7f.1 127.0.0.01 127.0.0.1. 127.0.0.0x1
00000177.0.0.1 127.0.0.256 256.0.0.1 1.2.3.4.5 1.2.3 1 0 0x 0.0 10.1 192.168.257 3232235777 0xC0A80001 0300.0250.0.1
0xa9fea9fe 2852039166 169.254.43518 0251.0376.0251.0376 0xa9.0xfe.0xa9.0xfe 169.254.169.0xfe 8.8.8.8. 08.8.8.8
8.8.8.010 010.8.8.8 +127.0.0.1 127.0.0.1%00 127.0.0.1%20 127%2e0%2e0%2e1 %31%32%37.0.0.1 127.0.0.1%2f local%68ost
[fe80::1%25eth0] [fe80::1%eth0] [::1%25lo] [::1%1] [::ffff:127.0.0.1%251] [::1].evil.example [::1]x [::1 ::1 [1]
[::1.2] [::ffff:0x7f.1] [::ffff:127.1] [v1.x] [] [::g] hooks.example. localhost. hooks..example .hooks.example
hooks.example.. -hooks.example hooks-.example ho~oks.example hooks,example hooks_example!x hooks.example:443:443
hooks.example:0x1bb hooks.example:-1 hooks.example:99999 hooks.example:0 hooks.example: user@hooks.example
user:pw@hooks.example hooks.example@127.0.0.1 127.0.0.1@hooks.example @hooks.example :@hooks.example
a@b@hooks.example %40hooks.example hooks.example\@127.0.0.1 hooks.example\.evil hooks.example#@127.0.0.1 ⓵⓶⓻.0.0.1
１２７.0.0.1 127。0。0。1 lⓄcalhost hööks.example hooks.example%00.evil 1.1.1.1%0d%0ax 0x7f000001.0x1 example.0x7f
example.127 example.1 hooks.0
"""
)

DENIED_ADDRESSES = words(
    r"""
0.0.0.0 0.0.0.1 0.255.255.255 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200 100.127.255.255
127.0.0.0 127.0.0.1 127.0.0.53 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2
169.254.170.23 169.254.255.255 172.16.0.0 172.16.0.1 172.17.0.1 172.31.255.255 192.0.0.1 192.0.0.8 192.0.0.170
192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.0 192.168.0.1 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1
203.0.113.1 224.0.0.1 224.0.0.251 239.255.255.255 240.0.0.1 255.255.255.254 255.255.255.255 :: ::1 ::2 ::127.0.0.1
::7f00:1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:7f00:1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:a9fe:a9fe
::ffff:0.0.0.0 ::ffff:192.168.1.1 ::ffff:100.64.0.1 ::ffff:168.63.129.16 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8
0:0:0:0:0:ffff:7f00:0001 64:ff9b::127.0.0.1 64:ff9b::7f00:1 64:ff9b::10.0.0.1 64:ff9b::a9fe:a9fe
64:ff9b::192.168.0.1 64:ff9b::a83f:8110 64:ff9b:1::1 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff::10.0.0.1 64:ff9b:2::1 100::1
100:0:0:1::1 2001::1 2001:0:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:a00:1::f5ff:fffe 2001:2::1
2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1:: 2002:7f00:0001::1 2002:a00:1:: 2002:a9fe:a9fe:: 2002:c0a8:101::1
2002:808:808:: 3fff::1 3fff:fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00::1 fd00:ec2::254 fd00:ec2::23 fd20:ce::254
fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fe80::1 fe80::a9fe:a9fe fe80::5efe:10.0.0.1 febf::1 fec0::1 feff::1 ff00::
ff02::1 ff02::fb ff05::2 ff0e::1 fe80::5efe:8.8.8.8 2a00:1450::5efe:127.0.0.1 2a00:1450::5efe:10.0.0.1
2a00:1450::200:5efe:192.168.0.1 2a00:1450::200:5efe:a9fe:a9fe
"""
)

PUBLIC_ADDRESSES = words(
    r"""
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255
169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255
198.20.0.0 203.0.112.255 203.0.114.0 223.255.255.255 2606:4700:4700::1111 2a00:1450:4001::200e 2001:4860:4860::8888
2001:200::1 2003::1 3ffe::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2a00:1450::5efe:8.8.8.8
"""
)


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# --- what can be known when the configuration is read


def test_the_address_tables_have_the_expected_size() -> None:
    assert len({*ODD_SPELLINGS}) + len({*DENIED_ADDRESSES}) >= 150


@pytest.mark.parametrize("host", ODD_SPELLINGS)
def test_an_odd_spelling_of_a_host_is_refused_with_advice(host: str) -> None:
    problem = DEFAULT.problem_of_url(f"https://{host}/feedback")
    assert problem is not None
    assert len(problem) > 10


@pytest.mark.parametrize("host", ODD_SPELLINGS)
def test_no_list_of_the_operator_s_makes_an_odd_spelling_pass(host: str) -> None:
    lax = EgressGuard(EgressSettings(allow=("0.0.0.0/0", "::/0", ".example")))
    assert lax.problem_of_url(f"https://{host}/feedback") is not None


@pytest.mark.parametrize("address", DENIED_ADDRESSES)
def test_a_denied_address_is_refused_in_a_url_and_behind_a_name(address: str) -> None:
    assert DEFAULT.problem_of_url(f"https://{bracketed(address)}/") is not None
    problem = DEFAULT.problem_of_address("hooks.example", address, 443)
    assert problem is not None
    assert "hooks.example resolves to" in problem
    assert address not in problem, "where the operator's own names lead is not for tenants to learn"


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_a_public_address_is_allowed(address: str) -> None:
    assert DEFAULT.problem_of_url(f"https://{bracketed(address)}/") is None
    assert DEFAULT.problem_of_address("hooks.example", address, 443) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.luma.example/feedback",
        "https://HOOKS.example/",
        "https://hooks.example:8443/a?b=c",
        "https://xn--hks-sna.example/",
        "https://a_b.hooks.example/",
        "https://1.hooks.example/",
        "https://svc.example/",
        "https://internal.example/",
        "https://127.0.0.1.nip.example/",  # resolves to whatever it does: asked again then
    ],
)
def test_an_ordinary_url_is_allowed(url: str) -> None:
    assert DEFAULT.problem_of_url(url) is None


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://hooks.example/", "https://"),
        ("ftp://hooks.example/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("gopher://hooks.example:8443/", "https://"),
        ("//hooks.example/", "https://"),
        ("hooks.example", "https://"),
        ("", "visible ASCII"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://localhost/", "loopback"),
        ("https://a.localhost/", "loopback"),
        ("https://LOCALHOST:8443/", "loopback"),
        ("https://kubernetes/", "public host name"),
        ("https://metadata.google.internal/", "public host name"),
        ("https://instance-data.ec2.internal/", "public host name"),
        ("https://kubernetes.default.svc/", "public host name"),
        ("https://kubernetes.default.svc.CLUSTER.local/", "public host name"),
        ("https://printer.local/", "public host name"),
        ("https://router.home.arpa/", "public host name"),
        ("https://db.localdomain/", "public host name"),
        ("https://hooks.example.internal:8443/", "public host name"),
        ("https://user:pw@hooks.example/", "user name or password"),
        ("https://hooks.example/#x", "fragment"),
        ("https://hooks.example:22/", "use 443, 8443"),
        ("https://hooks.example:80/", "use 443, 8443"),
        ("https://hooks.example:1023/", "use 443, 8443"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://127.1/", "four decimal numbers"),
        ("https://hooks.example./", "leave the dot out"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://10.0.0.1/", "public addresses only"),
        ("https://hooks.example/a b", "percent-encode"),
        ("https://hooks.example/a\r\nhost: x", "percent-encode"),
        ("https://höoks.example/", "xn--"),
    ],
)
def test_a_refusal_says_what_to_change(url: str, says: str) -> None:
    assert says in str(DEFAULT.problem_of_url(url))


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://a_b.hooks.example/", "underscore"),
        ("https://_hooks.example/", "underscore"),
        ("https://hooks.service.consul/", "internal DNS"),
        ("https://hooks.corp/", "internal DNS"),
        ("https://hooks.acme.LAN:8443/x", "internal DNS"),
        ("https://hooks.acme.internal/", "internal DNS"),
        ("https://receiver/", "internal DNS"),
        ("https://receiver.default.svc/", "internal DNS"),
        ("https://hooks.example/", None),
        ("https://corp.example/", None),
        ("https://mylan.example/", None),
        ("https://hooks.example/a_b?c_d", None),
        ("https://8.8.8.8/", None),
        ("https://[2606:4700:4700::1111]/", None),
    ],
)
def test_a_host_that_is_accepted_and_may_not_work_is_warned_of(url: str, says: str | None) -> None:
    warning = DEFAULT.warning_of_url(url)
    assert (warning is None) if says is None else (says in (warning or ""))


# --- the operator's lists


def guard(**egress: object) -> EgressGuard:
    return EgressGuard(EgressSettings.model_validate(egress))


@pytest.mark.parametrize(
    ("egress", "host", "address", "allowed"),
    [
        ({"allow": ["10.0.0.0/8"]}, "a.example", "10.1.2.3", True),
        ({"allow": ["10.0.0.0/8"]}, "a.example", "::ffff:10.1.2.3", True),
        ({"allow": ["10.0.0.0/8"]}, "a.example", "64:ff9b::10.1.2.3", False),
        ({"allow": ["10.0.0.0/8"]}, "a.example", "2002:a01:203::", False),
        ({"allow": ["10.0.0.0/8"]}, "a.example", "11.0.0.1", True),
        ({"allow": ["10.0.0.0/8"]}, "a.example", "192.168.0.1", False),
        ({"allow": ["10.1.2.3"]}, "a.example", "10.1.2.3", True),
        ({"allow": ["10.1.2.3"]}, "a.example", "10.1.2.4", False),
        ({"allow": ["fd00::/8"]}, "a.example", "fd12::1", True),
        ({"allow": ["169.254.169.254/32"]}, "a.example", "169.254.169.254", True),
        ({"allow": [".svc.example"]}, "a.svc.example", "10.0.0.1", True),
        ({"allow": [".svc.example"]}, "a.b.SVC.example", "127.0.0.1", True),
        ({"allow": [".svc.example"]}, "svc.example", "10.0.0.1", False),
        ({"allow": [".svc.example"]}, "evilsvc.example", "10.0.0.1", False),
        ({"allow": [".svc.example"]}, "svc.example.evil", "10.0.0.1", False),
        ({"allow": [".svc.example"]}, "a.svc.example", "169.254.169.254", False),
        ({"allow": [".svc.example"]}, "a.svc.example", "169.254.0.1", False),
        ({"allow": [".svc.example"]}, "a.svc.example", "224.0.0.1", False),
        ({"allow": [".svc.example"]}, "a.svc.example", "0.0.0.0", False),
        ({"allow": ["receiver"]}, "receiver", "172.17.0.2", True),
        ({"allow": ["receiver"]}, "receiver2", "172.17.0.2", False),
        ({"deny": ["8.8.8.0/24"]}, "a.example", "8.8.8.8", False),
        ({"deny": ["8.8.8.0/24"]}, "a.example", "::ffff:8.8.8.8", False),
        ({"deny": ["8.8.8.0/24"]}, "a.example", "64:ff9b::8.8.8.8", False),
        ({"deny": ["8.8.8.0/24"], "allow": ["2002::/16"]}, "a.example", "2002:808:808::", False),
        ({"deny": ["8.8.8.0/24"], "allow": ["2001::/32"]}, "a.example", "2001:0:808:808::1", False),
        ({"deny": ["8.8.8.0/24"], "allow": ["64:ff9b:1::/48"]}, "a.example", "64:ff9b:1::8.8.8.8", False),
        ({"deny": ["8.8.8.0/24"], "allow": ["::/0"]}, "a.example", "::8.8.8.8", False),
        ({"deny": [".evil.example"]}, "a.evil.example", "8.8.8.8", False),
        ({"deny": ["evil.example"]}, "EVIL.example", "8.8.8.8", False),
        ({"deny": ["evil.example"]}, "a.evil.example", "8.8.8.8", True),
        ({"allow": ["10.0.0.0/8"], "deny": ["10.0.0.1"]}, "a.example", "10.0.0.1", False),
        ({"allow": ["a.example"], "deny": ["10.0.0.0/8"]}, "a.example", "10.0.0.1", False),
        ({"allow": ["10.0.0.0/8"], "deny": ["a.example"]}, "a.example", "10.0.0.1", False),
    ],
)
def test_the_operator_s_lists_and_deny_wins(egress: dict[str, object], host: str, address: str, allowed: bool) -> None:
    assert (guard(**egress).problem_of_address(host, address, 443) is None) == allowed


@pytest.mark.parametrize(
    ("egress", "url", "allowed"),
    [
        ({}, "https://a.example:443/", True),
        ({}, "https://a.example:8443/", True),
        ({}, "https://a.example:1024/", True),
        ({}, "https://a.example:65535/", True),
        ({}, "https://a.example:25/", False),
        ({"ports": [443]}, "https://a.example/", True),
        ({"ports": [443]}, "https://a.example:8443/", False),
        ({"ports": [22]}, "https://a.example:22/", True),
        ({"allow_http": True}, "http://a.example:8080/", True),
        ({"allow_http": True}, "http://a.example/", False),
        ({"allow_http": True, "ports": [80]}, "http://a.example/", True),
        ({"allow": ["127.0.0.0/8"]}, "https://localhost/", True),
        ({"allow": ["127.0.0.0/8"]}, "https://receiver/", True),
        ({"allow": ["receiver"]}, "https://receiver/", True),
        ({"allow": ["other"]}, "https://receiver/", False),
        ({"allow": ["127.0.0.0/8"]}, "https://receiver.default.svc/", True),
        ({"allow": [".svc"]}, "https://receiver.default.svc/", True),
        ({"allow": [".svc"]}, "https://receiver.corp.internal/", False),
        ({"allow": [".svc"], "deny": ["kubernetes.default.svc"]}, "https://kubernetes.default.svc/", False),
        ({"deny": [".example"]}, "https://a.example/", False),
        ({"deny": ["8.8.8.8"]}, "https://8.8.8.8/", False),
    ],
)
def test_ports_schemes_and_names_are_decided_when_the_configuration_is_read(
    egress: dict[str, object], url: str, allowed: bool
) -> None:
    assert (guard(**egress).problem_of_url(url) is None) == allowed


@pytest.mark.parametrize(
    ("egress", "keys"),
    [
        ({"allow": ["10.0.0.0/8", "10.0.0.1/8", "fd00::/129", "10.1", "*.example", ""]},
         ["egress.allow[1]", "egress.allow[2]", "egress.allow[3]", "egress.allow[4]", "egress.allow[5]"]),
        ({"deny": ["a b", ".", "https://a.example"]}, ["egress.deny[0]", "egress.deny[1]", "egress.deny[2]"]),
        ({"proxy": "proxy:3128"}, ["egress.proxy.url"]),
        ({"proxy": "socks5://proxy:1080"}, ["egress.proxy.url"]),
        ({"proxy": "http://u:p@proxy:3128"}, ["egress.proxy.url"]),
        ({"proxy": "http://proxy:99999"}, ["egress.proxy.url"]),
        ({"proxy": {"url": "http://proxy:3128/path"}}, ["egress.proxy.url"]),
        ({"proxy": {"url": "http://proxy:3128", "resolve": "proxy"}}, []),
        ({"proxy": "http://proxy:3128", "allow_http": True}, ["egress.allow_http"]),
        ({"nameservers": ["10.0.0.53:53", "[fd00::53]:53", "10.0.0.53", "dns.example:53", "10.0.0.53:0"]},
         ["egress.nameservers[3]", "egress.nameservers[4]"]),
        ({"ca_bundle": "/nonexistent/ca.pem"}, ["egress.ca_bundle"]),
        ({"allow": [".svc.example", "receiver", "::1"], "proxy": "https://proxy.example"}, []),
    ],
)  # fmt: skip
def test_mistakes_in_the_operator_s_settings_are_named_at_the_start(egress: dict[str, object], keys: list[str]) -> None:
    problems = egress_problems(EgressSettings.model_validate(egress))
    assert [problem.key for problem in problems] == keys
    assert all(problem.message for problem in problems)


def test_a_bundle_without_a_certificate_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    assert [one.key for one in egress_problems(EgressSettings(ca_bundle=tmp_path / "ca.pem"))] == ["egress.ca_bundle"]


# --- resolutions, with a real DNS server


@pytest.fixture
async def names() -> AsyncIterator[NameServer]:
    async with NameServer().running() as server:
        yield server


async def resolved(names: NameServer, host: str, **egress: object) -> Sequence[str] | FailureReason:
    settings = EgressSettings.model_validate({"nameservers": [names.address], **egress})
    async with Resolver(settings, EgressGuard(settings)) as resolver:
        try:
            return await resolver.resolve("https", host, 443)
        except TransportError as failed:
            return failed.reason


DENIED = FailureReason.EGRESS_DENIED


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (["8.8.8.8"], ("8.8.8.8",)),
        (["8.8.8.8", "1.1.1.1"], ("8.8.8.8", "1.1.1.1")),
        (["8.8.8.8", "2606:4700:4700::1111"], ("2606:4700:4700::1111", "8.8.8.8")),
        (["8.8.8.8", "10.0.0.1"], DENIED),
        (["10.0.0.1", "8.8.8.8"], DENIED),
        (["8.8.8.8", "::1"], DENIED),
        (["2606:4700:4700::1111", "127.0.0.1"], DENIED),
        (["8.8.8.8", "::ffff:127.0.0.1"], DENIED),
        (["64:ff9b::a9fe:a9fe"], DENIED),
        (["2002:7f00:1::"], DENIED),
        (["0.0.0.0"], DENIED),
        (["8.8.8.8"] * 3, ("8.8.8.8",)),
        ([f"8.8.4.{i}" for i in range(40)], tuple(f"8.8.4.{i}" for i in range(32))),
        ([*(f"8.8.4.{i}" for i in range(40)), "10.0.0.1"], DENIED),
        ([], FailureReason.DNS),
    ],
)
async def test_a_resolution_is_refused_whole_where_any_address_is_denied(
    names: NameServer, answer: list[str], expected: object
) -> None:
    names.zone["hooks.example"] = [answer]
    assert await resolved(names, "hooks.example") == expected


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ({"a.example": [["b.example"]], "b.example": [["8.8.8.8"]]}, ("8.8.8.8",)),
        ({"a.example": [["b.example"]], "b.example": [["127.0.0.1"]]}, DENIED),
        ({"a.example": [["b.example"]], "b.example": [["c.example"]], "c.example": [["fd00::1", "8.8.8.8"]]}, DENIED),
        ({"a.example": [["elsewhere.b"]], "elsewhere.b": [["10.0.0.1"]]}, DENIED),
        ({"a.example": [["elsewhere.b"]], "elsewhere.b": [["8.8.8.8"]]}, ("8.8.8.8",)),
        ({"a.example": [["elsewhere.b"]], "elsewhere.b": [["elsewhere.b"]]}, FailureReason.DNS),
        ({"a.example": [["elsewhere.b"]], "elsewhere.b": [["elsewhere.c"]], "elsewhere.c": [["elsewhere.b"]]},
         FailureReason.DNS),
        ({"a.example": [["elsewhere.gone"]]}, FailureReason.DNS),
        ({f"elsewhere.{i}" if i else "a.example": [[f"elsewhere.{i + 1}"]] for i in range(12)}, FailureReason.DNS),
        ({}, FailureReason.DNS),
    ],
)  # fmt: skip
async def test_chains_of_cnames_are_followed_to_what_is_checked(
    names: NameServer, zone: dict[str, list[Sequence[str]]], expected: object
) -> None:
    names.zone |= zone
    assert await resolved(names, "a.example") == expected


async def test_a_truncated_answer_is_looked_up_again_by_tcp(names: NameServer) -> None:
    names.zone["hooks.example"] = [["8.8.8.8", "10.0.0.1"]]
    names.truncate.add("hooks.example")
    assert await resolved(names, "hooks.example") == DENIED
    assert len(names.queries) == 4


async def test_forged_and_broken_datagrams_are_not_taken_for_the_answer(names: NameServer) -> None:
    names.zone["hooks.example"] = [["8.8.8.8"]]

    def forge(reply: bytes) -> list[bytes]:
        other_id = bytes([reply[0] ^ 1]) + reply[1:]
        query = reply[:2] + b"\x01\x00" + reply[4:]
        other_name = reply.replace(b"hooks", b"hacks")
        loop = reply[:12] + b"\xc0\x0c" + reply[14:]
        return [b"", b"x", reply[:11], reply[:20], other_id, query, other_name, loop, bytes(512)]

    names.forge = forge
    assert await resolved(names, "hooks.example") == ("8.8.8.8",)


async def test_an_answer_is_used_for_ten_seconds_and_looked_up_once_at_a_time(names: NameServer) -> None:
    names.zone["hooks.example"] = [["8.8.8.8"], ["10.0.0.1"]]
    now = 100.0
    settings = EgressSettings(nameservers=(names.address,))
    async with Resolver(settings, EgressGuard(settings), clock=lambda: now) as resolver:
        many = await asyncio.gather(*(resolver.resolve("https", "hooks.example", 443) for _ in range(50)))
        assert {*many} == {("8.8.8.8",)}
        now += 9.9
        assert await resolver.resolve("https", "hooks.example", 443) == ("8.8.8.8",)
        assert len(names.queries) == 2
        now += 0.2
        with pytest.raises(TransportError, match="has no public address"):
            await resolver.resolve("https", "hooks.example", 443)


async def test_one_impatient_caller_does_not_take_the_answer_from_the_others(names: NameServer) -> None:
    names.zone["hooks.example"] = [["8.8.8.8"]]
    settings = EgressSettings(nameservers=(names.address,))
    async with Resolver(settings, EgressGuard(settings)) as resolver:
        first = asyncio.create_task(resolver.resolve("https", "hooks.example", 443))
        second = asyncio.create_task(resolver.resolve("https", "hooks.example", 443))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == ("8.8.8.8",)


async def test_the_system_s_resolver_is_checked_the_same() -> None:
    settings = EgressSettings()
    async with Resolver(settings, EgressGuard(settings)) as resolver:
        assert set(await resolver.lookup("localhost")) <= {"127.0.0.1", "::1"}
        with pytest.raises(TransportError, match="loopback"):
            await resolver.resolve("https", "localhost", 443)


# --- no configuration text gets past

hosts = st.one_of(
    st.sampled_from(ODD_SPELLINGS),
    st.sampled_from([bracketed(a) for a in DENIED_ADDRESSES + PUBLIC_ADDRESSES]),
    st.ip_addresses().map(lambda a: bracketed(str(a))),
    st.ip_addresses(v=4).map(lambda a: str(int(a))),
    st.ip_addresses(v=4).map(lambda a: hex(int(a))),
    st.ip_addresses(v=4).map(lambda a: f"[::ffff:{a}]"),
    st.ip_addresses(v=4).map(lambda a: f"[64:ff9b::{a}]"),
    st.text("abx01.:[]@%/\\#?-_ \r\n\t", max_size=30),
    st.text(max_size=20),
)
urls = st.one_of(
    st.builds("{}{}{}{}".format, st.sampled_from(["https://", "HTTPS://", "http://", "//", ""]), hosts,
              st.sampled_from(["", ":443", ":8443", ":22", ":0443", ":"]),
              st.one_of(st.just("/"), st.text("/?#ab \r\n\t%:@ä", max_size=12))),
    st.text(max_size=40),
)  # fmt: skip
header_names = st.one_of(
    st.sampled_from(["Host", "content-length", "Transfer-Encoding", "X-A", "x-a", "Cookie", "webhook-id", "TE"]),
    st.text("abX-: \r\n\t\0ä", max_size=12),
)
header_values = st.one_of(st.text("ab \r\n\t\0äé:", max_size=20), st.just("x\r\nhost: y"))

FORBIDDEN = {"host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade"}
FORBIDDEN |= {"keep-alive", "expect", "user-agent", "cookie", "traceparent"}


def accepted(url: str, headers: dict[str, str]) -> WebhookConfig | None:
    """The webhook, where configuration and guard both accept it."""
    try:
        config = WebhookConfig(name="n", org="o", sandbox="s", url=url, headers=headers)
    except ValidationError:
        return None
    return config if DEFAULT.problem_of_url(config.url) is None else None


@given(urls, st.dictionaries(header_names, header_values, max_size=4))
@settings(max_examples=1500)
def test_no_configuration_text_yields_a_request_with_a_forbidden_header(url: str, headers: dict[str, str]) -> None:
    config = accepted(url, headers)
    if config is None:
        return
    head = HeaderBlock(Endpoint.of(config)).render("application/json", 2, (("webhook-id", "m"),))
    lines = head.decode("ascii").split("\r\n")
    assert lines[-2:] == ["", ""]
    assert lines[0].count(" ") == 2
    names = [line.partition(":")[0].lower() for line in lines[1:-2]]
    assert names[:5] == ["host", "content-type", "user-agent", "content-length", "webhook-id"]
    assert names[5:] == [name.lower() for name in config.headers]
    assert not any(name in FORBIDDEN or name.startswith(("content-", "proxy-", "webhook-")) for name in names[5:])


@given(urls)
@settings(max_examples=1500)
def test_no_configuration_text_names_a_denied_address(url: str) -> None:
    config = accepted(url, {})
    if config is None:
        return
    endpoint = Endpoint.of(config)
    assert endpoint.scheme == "https"
    assert endpoint.host.isascii()
    assert DEFAULT.problem_of_target(endpoint.scheme, endpoint.host, endpoint.port) is None
    try:
        address = ipaddress.ip_address(endpoint.host)
    except ValueError:
        # A name: no system may read it as a number (inet_aton), and the address behind it is checked at connect.
        assert not endpoint.host.split(".")[-1].isdigit()
        assert not endpoint.host.split(".")[-1].startswith("0x")
    else:
        assert address.is_global


@given(st.ip_addresses())
@settings(max_examples=2000)
def test_an_address_that_python_calls_special_is_never_allowed(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if not (mapped or address).is_global or (mapped or address).is_multicast:
        if address in ipaddress.ip_network("64:ff9b::/96"):
            return
        assert DEFAULT.problem_of_address("hooks.example", str(address), 443) is not None


@given(st.ip_addresses(v=4))
@settings(max_examples=1000)
def test_a_form_that_carries_an_ipv4_address_is_never_better_than_it(address: ipaddress.IPv4Address) -> None:
    if DEFAULT.problem_of_address("a.example", str(address), 443) is None:
        return
    n = int(address)
    forms = [
        f"::ffff:{address}", f"::{address}", f"64:ff9b::{address}", f"64:ff9b:1::{address}", f"::ffff:0:{address}",
        str(ipaddress.IPv6Address(0x2002 << 112 | n << 80)), str(ipaddress.IPv6Address(0x20010000 << 96 | n << 64 | 1)),
        str(ipaddress.IPv6Address(0x20010000 << 96 | 1 << 64 | n ^ 0xFFFFFFFF)), f"2a00:1450::5efe:{address}",
        f"2a00:1450::200:5efe:{address}",
    ]  # fmt: skip
    for form in forms:
        assert DEFAULT.problem_of_address("a.example", form, 443) is not None, form


@pytest.mark.parametrize("transport", ["aiohttp", "lean"])
async def test_a_socket_is_only_ever_opened_to_an_address_that_the_guard_allows(
    transport: str, names: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both clients, every spelling and kind of address, straight past the configuration: what reaches connect."""
    reached: list[str] = []

    async def watch(addresses: Sequence[str], port: int, within_s: float) -> object:
        reached.extend(addresses)
        raise ConnectionRefusedError

    monkeypatch.setattr("dispatcher.transport.dial.connect_first", watch)
    assert connect_first is not watch
    egress = EgressSettings(nameservers=(names.address,))
    for i, address in enumerate(DENIED_ADDRESSES):
        names.zone[f"n{i}.example"] = [[address]]
        names.zone[f"m{i}.example"] = [["8.8.8.8", address]]
    direct = [bracketed(address) for address in DENIED_ADDRESSES]
    hosts = direct + list(names.zone) + [bracketed(address) for address in PUBLIC_ADDRESSES]
    async with open_transport(DeliverySettings.model_validate({"transport": transport}), egress) as client:
        attempts = [await client.post(Request(Endpoint.at(f"https://{host}/"), (), b"", 20, 20)) for host in hosts]
    assert {ipaddress.ip_address(one) for one in reached} == {ipaddress.ip_address(one) for one in PUBLIC_ADDRESSES}
    denied = len(hosts) - len(PUBLIC_ADDRESSES)
    assert {attempt.failure for attempt in attempts[: len(direct)]} == {FailureReason.URL_DENIED}
    assert {attempt.failure for attempt in attempts[len(direct) : denied]} <= {DENIED, FailureReason.DNS}


# Found by changing the guard and seeing that no test noticed


@pytest.mark.parametrize("spelling", ["Evil.Example", "EVIL.EXAMPLE", "evil.example"])
@pytest.mark.parametrize("entry", ["evil.example", "EVIL.example", ".Example", ".example"])
def test_case_opens_and_closes_nothing(spelling: str, entry: str) -> None:
    """Neither in the operator's lists nor in a tenant's URL."""
    denying, allowing = guard(deny=[entry]), guard(allow=[entry])
    assert denying.problem_of_url(f"https://{spelling}/") is not None
    assert denying.problem_of_target("https", spelling, 443) is not None
    assert denying.problem_of_address(spelling, "8.8.8.8", 443) is not None
    assert denying.denies(spelling, "8.8.8.8")
    assert allowing.problem_of_address(spelling, "10.0.0.1", 443) is None
    assert not allowing.denies(spelling, "10.0.0.1")
    assert guard(allow=["meta.internal"]).problem_of_target("https", "META.Internal", 443) is None


@pytest.mark.parametrize("host", ["LOCALHOST", "a.LocalHost", "db.SVC", "x.Internal", "PRINTER", "a.home.ARPA"])
def test_an_inner_name_in_capitals_is_an_inner_name(host: str) -> None:
    assert DEFAULT.problem_of_target("https", host, 443) is not None
    assert DEFAULT.problem_of_url(f"https://{host}/") is not None


def test_a_warning_does_not_depend_on_the_case_of_the_name() -> None:
    for url in ("https://HOOKS.Corp/", "https://hooks.corp/", "https://Hooks.CONSUL/"):
        assert "only an internal DNS knows" in (DEFAULT.warning_of_url(url) or "")
    assert DEFAULT.warning_of_url("https://HOOKS.example/") is None


def test_an_address_is_refused_on_a_port_that_is_not_allowed() -> None:
    """Whatever was asked about the name: the check right before the connection looks at the port as well."""
    for port in (1, 22, 25, 80, 442, 444, 1023, 65536):
        assert "port" in (DEFAULT.problem_of_address("hooks.example", "8.8.8.8", port) or "")
    for port in (443, 8443, 1024, 65535):
        assert DEFAULT.problem_of_address("hooks.example", "8.8.8.8", port) is None
    assert "port" in (guard(ports=[443]).problem_of_address("hooks.example", "8.8.8.8", 8443) or "")


def test_an_address_is_denied_on_every_port_or_on_none() -> None:
    assert DEFAULT.denies("hooks.example", "10.0.0.1")
    assert not DEFAULT.denies("hooks.example", "8.8.8.8"), "port 22 would be refused, the address is not denied"


def test_a_name_has_at_most_253_characters_and_a_label_63() -> None:
    longest = ".".join(["a" * 49] * 5) + ".abc"
    assert len(longest) == 253
    assert DEFAULT.problem_of_url(f"https://{longest}/") is None
    assert "not a host name" in (DEFAULT.problem_of_url(f"https://a{longest}/") or "")
    assert DEFAULT.problem_of_url(f"https://{'a' * 63}.example/") is None
    assert "not a host name" in (DEFAULT.problem_of_url(f"https://{'a' * 64}.example/") or "")


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("10.0.0.53", ("10.0.0.53", 53)), ("10.0.0.53:5353", ("10.0.0.53", 5353)), ("fd00::53", ("fd00::53", 53)),
        ("[fd00::53]", ("fd00::53", 53)), ("[fd00::53]:1", ("fd00::53", 1)), ("10.0.0.53:65535", ("10.0.0.53", 65535)),
        ("10.0.0.53:65536", None), ("10.0.0.53:0", None), ("10.0.53", None), ("dns.example", None), ("", None),
    ],
)  # fmt: skip
def test_a_dns_server_is_an_address_with_or_without_a_port(text: str, server: tuple[str, int] | None) -> None:
    assert nameserver(text) == server
