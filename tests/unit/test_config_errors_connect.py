"""Errors in tokens, listeners, marks and URLs, as the whole line that the operator reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from .test_config_errors import B, mark, other, two
from .test_config_load import allowed, client, load_entries, server, sha1, sha256

A: Final = sha1("a")

HASH: Final = "write the hash of the raw token, which printf %s TOKEN | sha1sum or tapotun token prints"
HEADER: Final = (
    "has characters that an HTTP header cannot carry; "
    "use printable ASCII without line breaks; tapotun token makes such a token"
)
URL: Final = 'write a URL such as "https://vpn.example.com/ip"'
# The entries of one file, and the line of its one finding.
ONE_FINDING: Final[list[tuple[Sequence[object], str]]] = [
    # --- tokens of a server ---
    ([two(token=sha1("test"))], '[0].clients[1].token: "a94a8fe5…" is already used at [0].clients[0].token; '
     "give each client a token of its own"),
    ([server(clients=[allowed(token=sha256("a")), allowed(token=sha256("a"), ip="10.10.0.3")])],
     '[0].clients[1].token: "ca978112…" is already used at [0].clients[0].token; give each client a token of its own'),
    ([two(token="s3cret")], "[0].clients[1].token: *** is not a hash; it looks like the raw token, which belongs on "
     f"the client only; {HASH}"),
    ([two(token="")], "[0].clients[1].token: *** is not a hash; it looks like the raw token, which belongs on "
     f"the client only; {HASH}"),
    ([two(token=B.upper())], "[0].clients[1].token: *** is a hash in capital letters; write it in lower case"),
    ([two(token="SHA256:" + sha256("b")[7:])], "[0].clients[1].token: *** is a hash in capital letters; "
     "write it in lower case"),
    ([two(token="sha1:" + B)], "[0].clients[1].token: *** is a SHA-1 with a prefix; write its 40 digits alone, "
     "in lower case"),
    ([two(token="sha256:" + B)], "[0].clients[1].token: *** is not a SHA-256 hash; write sha256: and 64 digits of "
     "lower-case hex"),
    ([two(token=sha256("b")[7:])], "[0].clients[1].token: *** looks like a SHA-256 without its prefix, or like a raw "
     f"token; write sha256: before the hash; for a raw token, {HASH}"),
    ([two(token=B[:39])], f"[0].clients[1].token: *** has 39 hex digits and a SHA-1 has 40; copy all of it, or {HASH}"),
    ([two(token=B + "\n")], "[0].clients[1].token: *** is not a hash; it looks like the raw token, which belongs on "
     f"the client only; {HASH}"),
    # --- tokens of a client ---
    *(
        ([client(token=token)], "[0].token: *** looks like a hash, which belongs on the server; write the raw token; "
         "if this is the raw token, keep it in a token_file")
        for token in (A, A.upper(), sha256("a"))
    ),
    ([client(token="")], "[0].token: *** is empty; write the raw token"),
    ([client(token="x" * 4097)], "[0].token: *** has more than 4096 characters; write a shorter token"),
    *(
        ([client(token=token)], f"[0].token: *** {HEADER}")
        for token in ("a\nb", "a\r\nx-api-key: b", "a\tb", "a\0", "\x7f", "é", "€", "\u2028")
    ),
    ([client(token=" a")], "[0].token: *** starts or ends with a space; remove the space"),
    ([client(token="a ")], "[0].token: *** starts or ends with a space; remove the space"),
    ([client(), client(name="b")], "[1].token: *** is used by [0].token at the same server, and each would end the "
     "other's streams; give each client a token of its own"),
    # --- listen ---
    ([server(listen=[])], '[0].listen: [] names no address; leave it out, or write "127.0.0.1"'),
    ([server(listen="localhost")], '[0].listen: "localhost" is a name, not an address; write ["127.0.0.1", "::1"]'),
    ([server(listen="*")], '[0].listen: "*" is not an address; write ["0.0.0.0", "::"] for every address'),
    ([server(listen="")], '[0].listen: "" is not an address; write ["0.0.0.0", "::"] for every address'),
    ([server(listen=["::1", "vpn.example.com"])], '[0].listen[1]: "vpn.example.com" is not an address; '
     'write an address literal such as "127.0.0.1", or "unix:/path"'),
    ([server(listen="127.0.0.1:80")], '[0].listen: "127.0.0.1:80" has a port; write "127.0.0.1" here, and the port in '
     '"port"'),
    ([server(listen="[::1]:80")], '[0].listen: "[::1]:80" has a port; write "::1" here, and the port in "port"'),
    ([server(listen="[::1]")], '[0].listen: "[::1]" has brackets; write "::1"'),
    ([server(listen="127.0.0.1 ")], '[0].listen: "127.0.0.1 " has white space at its ends; write "127.0.0.1"'),
    ([server(listen="10.0.0.0/8")], '[0].listen: "10.0.0.0/8" is a path without unix:, or a network; '
     'write "unix:/path" or an address'),
    ([server(listen="/run/t.sock")], '[0].listen: "/run/t.sock" is a path without unix:, or a network; '
     'write "unix:/path" or an address'),
    *(
        ([server(listen=literal)], f'[0].listen: "{literal}" is link-local, for which an interface would have to be '
         'named; write "::" or an address of wider scope')
        for literal in ("fe80::1", "fe80::1%eth0")
    ),
    *(
        ([server(listen=literal)], f'[0].listen: "{literal}" has a zone; leave out the % and what follows it')
        for literal in ("::1%lo", "2001:db8::1%eth0", "::%eth0")
    ),
    ([server(listen="::ffff:10.0.0.1")], '[0].listen: "::ffff:10.0.0.1" is an IPv4-mapped IPv6 address; '
     'write "10.0.0.1"'),
    ([server(listen="ff02::1")], '[0].listen: "ff02::1" is not the address of a single host; '
     "write an address of this machine"),
    *(
        ([server(port=..., listen=path)], f'[0].listen: "{path}" has no absolute path; write it as in '
         '"unix:/run/tapotun.sock"')
        for path in ("unix:", "unix:t.sock", "unix:@abstract")
    ),
    ([server(port=..., listen="unix:/a\0b")], '[0].listen: "unix:/a\\u0000b" has control characters in its path; '
     'write it as in "unix:/run/tapotun.sock"'),
    ([server(port=..., listen="unix:/run/")], '[0].listen: "unix:/run/" names a directory; write the socket\'s own '
     'path, as in "unix:/run/tapotun.sock"'),
    ([server(port=..., listen="UNIX:/a")], '[0].listen: "UNIX:/a" has unix: in capital letters; write "unix:/a"'),
    ([server(port=..., listen="unix:/" + "ä" * 54)], f'[0].listen: "unix:/{"ä" * 54}" has a path of 109 bytes; '
     "choose one of at most 107 bytes"),
    # --- clashes of listeners ---
    ([server(), other(port=8080)], "[1].port: 8080 clashes with [0].port on port 8080; "
     'choose another port or another address to listen on, or give each a "path" of its own'),
    ([server(), other(port=8080, listen="0.0.0.0")], '[1].listen: "0.0.0.0" clashes with [0].port on port 8080; '
     "choose another port or another address to listen on"),
    ([server(listen="::"), other(port=8080)], "[1].port: 8080 clashes with [0].listen on port 8080; "
     "choose another port or another address to listen on"),
    ([server(listen=["10.0.0.1", "::1"]), other(port=8080, listen=["127.0.0.1", "0:0::1"])],
     '[1].listen[1]: "::1" clashes with [0].listen[1] on port 8080; '
     'choose another port or another address to listen on, or give each a "path" of its own'),
    ([server(listen=["127.0.0.1", "127.0.0.1"])], '[0].listen[1]: "127.0.0.1" clashes with [0].listen[0] on port '
     "8080; choose another port or another address to listen on"),
    ([server(port=..., listen="unix:/run/a"), other(port=..., listen="unix://run/./b/../a")],
     '[1].listen: "unix://run/./b/../a" clashes with [0].listen; choose another socket, or give each '
     'a "path" of its own'),
    ([server(port=..., listen=["unix:/a", "unix:/a"])], '[0].listen[1]: "unix:/a" clashes with [0].listen[0]; '
     "choose another socket"),
    # --- ingress options ---
    *(
        ([server(port=..., listen="unix:/a", listen_mode=mode)], f'[0].listen_mode: "{mode}" is not a file mode; write '
         'three octal digits, as in "0660"')
        for mode in ("", "660 ", "0o660", "678", "1660", "u=rw")
    ),
    ([server(port=..., listen="unix:/a", listen_mode=660)], '[0].listen_mode: 660 is a number, not text; write "0660"'),
    ([server(port=..., listen="unix:/a", listen_mode="0444")], '[0].listen_mode: "0444" lets nobody connect, because '
     'that needs write permission; write one such as "0660"'),
    ([server(listen_mode="0600")], 'warning: [0].listen_mode: has no effect: "listen" names no Unix socket; '
     "remove it"),
    ([server(trusted_proxies="127.0.0.1")], '[0].trusted_proxies: "127.0.0.1" is text, not a list; '
     'write ["127.0.0.1"]'),
    ([server(trusted_proxies=["nginx"])], '[0].trusted_proxies[0]: "nginx" is not an address or a network; write one '
     'such as "127.0.0.1" or "10.0.0.0/8", or "unix"'),
    ([server(trusted_proxies=["unix:/run/a"])], '[0].trusted_proxies[0]: "unix:/run/a" names a socket; write "unix" '
     'to trust every connection to a Unix socket of "listen"'),
    ([server(trusted_proxies=["unix"])], 'warning: [0].trusted_proxies[0]: "unix" has no effect: "listen" names no '
     "Unix socket; remove it"),
    ([server(trusted_proxies=["[::1]"])], '[0].trusted_proxies[0]: "[::1]" has brackets; write the address without '
     "them, and without a port"),
    ([server(trusted_proxies=["10.0.0.1/8"])], '[0].trusted_proxies[0]: "10.0.0.1/8" has host bits set beyond /8; '
     'write "10.0.0.0/8" for the network, or "10.0.0.1" for this one address'),
    ([server(trusted_proxies=["10.0.0.0/33"])], '[0].trusted_proxies[0]: "10.0.0.0/33" has no prefix length that fits; '
     'write it as in "10.0.0.0/24"'),
    ([server(trusted_proxies=["fd00::/129"])], '[0].trusted_proxies[0]: "fd00::/129" has no prefix length that fits; '
     'write it as in "fd00::/64"'),
    ([server(trusted_proxies=["fe80::1%eth0"])], '[0].trusted_proxies[0]: "fe80::1%eth0" has a zone; leave out the '
     "% and what follows it"),
    ([server(trusted_proxies=["::ffff:10.0.0.0/104"])], '[0].trusted_proxies[0]: "::ffff:10.0.0.0/104" is an '
     'IPv4-mapped IPv6 address; write "10.0.0.0/8"'),
    ([server(trusted_proxies=["::ffff:10.0.0.0/8"])], '[0].trusted_proxies[0]: "::ffff:10.0.0.0/8" is an '
     'IPv4-mapped IPv6 address; write "10.0.0.0/8"'),
    ([server(trusted_proxies=["::/0"])], 'warning: [0].trusted_proxies[0]: "::/0" trusts everyone: any client can '
     "forge its address, also in the log; write the addresses of your proxies only"),
    ([server(proxy_protocol=True)], '[0].trusted_proxies: names no proxy, and with "proxy_protocol" only trusted '
     'proxies are served; write their addresses, such as ["127.0.0.1", "::1"], or "unix" for those on a Unix socket'),
    ([server(proxy_protocol=True, trusted_proxies=[])], '[0].trusted_proxies: [] names no proxy, and with '
     '"proxy_protocol" only trusted proxies are served; write their addresses, such as ["127.0.0.1", "::1"], or '
     '"unix" for those on a Unix socket'),
    ([server(proxy_protocol=1)], "[0].proxy_protocol: 1 is a number, not true or false; write true or false, without "
     "quotes"),
    ([server(path="/a", trusted_proxies=["127.0.0.1"]), other(port=8080, path="/b")], "[1].trusted_proxies: differs "
     "from [0].trusted_proxies, and both listen on the same endpoint; write the same in both"),
    ([server(path="/a", trusted_proxies=["::1"]), other(port=8080, path="/b", trusted_proxies=["::1"],
                                                        proxy_protocol=True)],
     "[1].proxy_protocol: differs from [0].proxy_protocol, and both listen on the same endpoint; write the same in "
     "both"),
    ([server(port=..., path="/a", listen="unix:/a", listen_mode="0666"),
      other(port=..., path="/b", listen="unix://a")],
     "[1].listen_mode: differs from [0].listen_mode, and both listen on the same endpoint; write the same in both"),
    # --- marks ---
    ([server(**mark(0, 100))], "[0].mark.value: 0 would match every packet; choose a mark from 1 on"),
    ([server(**mark(1, 0))], "[0].mark.table: 0 is the kernel's name for the main table, where a default route would "
     "take all traffic; choose a table of its own, such as 100"),
    *(
        ([client(**mark(1, table))], f"[0].mark.table: {table} is the {name} table of this machine, where a default "
         "route would take all traffic; choose a table of its own, such as 100")
        for table, name in ((253, "default"), (254, "main"), (255, "local"))
    ),
    ([server(**mark(100, 100)), client(**mark(100, 200))], "[1].mark.table: 200 differs from table 100 that [0].mark "
     "has for mark 100; use one table for one mark, or another mark"),
    ([server(**mark(100, 100, "0xff")), client(**mark(0x4064, 200, "0xffff"))], "[1].mark.table: 200 differs from "
     "table 100 that [0].mark has for mark 0x64/0xff; use one table for both, or marks that exclude each other: mark "
     "0x4064/0xffff does not exclude it"),
    ([server(**mark(100, 100)), client(**mark(100, 200, "0xff"))], "[1].mark.table: 200 differs from table 100 that "
     "[0].mark has for mark 100; use one table for both, or marks that exclude each other: mark 0x64/0xff does not "
     "exclude it"),
    ([server(**mark(0x4064, 100, "0xff"))], "[0].mark.value: 16484 (0x4064) has bits outside of the mask 0xff, so no "
     'packet could match; write "0x40ff" as the mask, or 100 here'),
    ([server(**mark(256, 100, 0xFF))], "[0].mark.value: 256 (0x100) has bits outside of the mask 0xff, so no packet "
     'could match; write "0x1ff" as the mask'),
    ([server(**mark(100, 100, "0x0"))], '[0].mark.mask: "0x0" has no bit, so that every packet would match; write a '
     'mask such as "0xff"'),
    ([server(**mark(100, 100, "255"))], '[0].mark.mask: "255" is not a hexadecimal number of up to 32 bits; write one '
     'such as "0xff"'),
    ([client(transport_mark=0x4064, **mark(100, 200, "0xff"))], "[0].transport_mark: 16484 is matched by the mark "
     "of [0].mark.value too, and the transport would enter its own tunnel; choose another mark"),
    ([client(transport_mark=100, **mark(100, 200))], "[0].transport_mark: 100 is the mark of [0].mark.value too, and "
     "the transport would enter its own tunnel; choose another mark"),
    # --- URLs ---
    ([client(server="")], f'[0].server: "" is empty; {URL}'),
    ([client(server="h:8080/ip")], '[0].server: "h:8080/ip" has no scheme; write "http://..." or "https://...", '
     'such as "https://vpn.example.com/ip"'),
    ([client(server="http:h")], f'[0].server: "http:h" has no // after its scheme; {URL}'),
    ([client(server="ftp://h")], f'[0].server: "ftp://h" has neither the scheme http nor https; {URL}'),
    ([client(server="ws://h")], '[0].server: "ws://h" has the scheme ws; write http instead'),
    ([client(server="wss://h")], '[0].server: "wss://h" has the scheme wss; write https instead'),
    ([client(server="http:///ip")], f'[0].server: "http:///ip" has no host; {URL}'),
    ([client(server="http://:80/")], f'[0].server: "http://:80/" has no host; {URL}'),
    *(
        ([client(server=f"http://{host}/")], f'[0].server: "http://{host}/" has no valid host name; {URL}')
        for host in ("a..b", "-a", "a-", "a%20b", "a_b!", "x" * 64, "a\\\\b"[:1] + "^")
    ),
    ([client(server="http://10.0.0.256/")], '[0].server: "http://10.0.0.256/" has no valid IPv4 address as its host; '
     'write four numbers as in "10.0.0.1"'),
    ([client(server="http://10.1/")], '[0].server: "http://10.1/" has no valid IPv4 address as its host; '
     'write four numbers as in "10.0.0.1"'),
    ([client(server="http://h:0/")], '[0].server: "http://h:0/" has a port out of range; write a port from 1 to 65535 '
     "after the host"),
    ([client(server="http://h:65536/")], '[0].server: "http://h:65536/" has a port out of range; write a port from 1 '
     "to 65535 after the host"),
    *(
        ([client(server=f"http://h:{port}/")], '[0].server: "http://***" has no valid port; '
         "write a port from 1 to 65535 after the host")
        for port in ("x", "+80", "٨٠", "123456", "-1")
    ),
    ([client(server="http://user@h/")], '[0].server: "http://***@h/" has a user name without a password; write '
     'user:password before the @, or leave it out and use "user" and "password_file"'),
    ([client(server="http://user:@h/")], '[0].server: "http://***@h/" has an empty password; write user:password '
     "before the @"),
    ([client(server="http://:pw@h/")], '[0].server: "http://***@h/" has no user name before its password, or one with '
     "a colon; write user:pass before the @"),
    ([client(server="http://a%3Ab:pw@h/")], '[0].server: "http://***@h/" has no user name before its password, or one '
     "with a colon; write user:pass before the @"),
    ([client(server="http://user:p%0aw@h/")], '[0].server: "http://***@h/" has control characters in its login; write '
     "the login as the other end knows it"),
    ([client(server="http://user:pä@h/")], '[0].server: "http://***@h/" has letters beyond ASCII in its login; write '
     "them percent-encoded"),
    ([client(server=f"http://user:{'p' * 1024}@h/")], '[0].server: "http://***@h/" has a login of more than 1024 '
     "bytes; choose a shorter password"),
    *(
        ([client(server=f"https://user:p{c}w@h/ip")],
         f'[0].server: "https://***@h/ip" has a {c} in its password; write it as {escaped}')
        for c, escaped in (("/", "%2F"), ("?", "%3F"), ("#", "%23"))
    ),
    ([client(server="http://user:pw@h:x/")], '[0].server: "http://***@h:x/" has no valid port; write a port from 1 to '
     "65535 after the host"),
    ([client(server="user:p w@h/?key=k")], '[0].server: "***@h/?***" has white space or control characters; '
     "remove them, or write a space as %20"),
    ([client(server="http://h/#x")], '[0].server: "http://h/#x" has a fragment, which is never sent; '
     "remove the # and what follows it"),
    ([client(server="http://h/a b")], '[0].server: "http://h/a b" has white space or control characters; '
     "remove them, or write a space as %20"),
    ([client(server="http://h/\r\nx: y")], '[0].server: "http://h/\\r\\nx: y" has white space or control characters; '
     "remove them, or write a space as %20"),
    ([client(server="http://bücher.example/")], '[0].server: "http://bücher.example/" has letters beyond ASCII in its '
     'host; write "xn--bcher-kva.example"'),
    ([client(server="http://ü..example/")], '[0].server: "http://ü..example/" has letters beyond ASCII in its '
     "host; write the host name in ASCII (punycode)"),
    ([client(server="http://h/ü")], '[0].server: "http://h/ü" has letters beyond ASCII in its path; '
     "write them percent-encoded"),
    ([client(server="http://::1:80/")], '[0].server: "http://::1:80/" has more than one colon in its host; '
     'write IPv6 as "http://[2001:db8::1]:8080/"'),
    ([client(server="http://[::1/")], '[0].server: "http://[::1/" has brackets that do not match; '
     'write "http://[2001:db8::1]:8080/"'),
    ([client(server="http://[::1]80/")], '[0].server: "http://[::1]80/" has brackets that do not match; '
     'write "http://[2001:db8::1]:8080/"'),
    ([client(server="http://[x]/")], '[0].server: "http://[x]/" has no IPv6 address in its brackets; '
     'write "http://[2001:db8::1]:8080/"'),
    ([client(server="http://[fe80::1]/")], '[0].server: "http://[fe80::1]/" is link-local and has no zone; '
     'write the interface to it, as in "[fe80::1%25eth0]"'),
    ([client(server="http://[fe80::1%eth0]/")], '[0].server: "http://[fe80::1%eth0]/" has no valid zone; '
     'write %25 and the interface, as in "[fe80::1%25eth0]"'),
    ([client(server="http://[fe80::1%25]/")], '[0].server: "http://[fe80::1%25]/" has no valid zone; '
     'write %25 and the interface, as in "[fe80::1%25eth0]"'),
    ([client(server="http://[fe80::1%25a%2Fb]/")], '[0].server: "http://[fe80::1%25a%2Fb]/" has no valid zone; '
     'write %25 and the interface, as in "[fe80::1%25eth0]"'),
    ([client(server="http://[2001:db8::1%25eth0]/")], '[0].server: "http://[2001:db8::1%25eth0]/" has a zone in its '
     "address; leave out the % and what follows it"),
    ([client(server="http://[::ffff:192.0.2.1]/")], '[0].server: "http://[::ffff:192.0.2.1]/" is an IPv4-mapped IPv6 '
     'address; write "192.0.2.1"'),
    ([client(server="http://[::]:8080/")], '[0].server: "http://[::]:8080/" has the unspecified address as its host; '
     'write "[::1]" for this machine'),
    ([client(proxy="http://[::]:3128")], '[0].proxy: "http://[::]:3128" has the unspecified address as its host; '
     'write "[::1]" for this machine'),
    ([client(server="http://[ff02::1]/")], '[0].server: "http://[ff02::1]/" has a multicast address as its host; '
     'write one such as "http://[2001:db8::1]:8080/"'),
    ([client(server="http://0.0.0.0:8080/")], '[0].server: "http://0.0.0.0:8080/" has the unspecified address as its '
     'host; write "127.0.0.1" for this machine'),
    ([client(proxy="http://224.0.0.1:3128")], '[0].proxy: "http://224.0.0.1:3128" has a multicast address as its '
     'host; write one such as "http://10.0.0.1:8080/"'),
    ([client(server="http://255.255.255.255/")], '[0].server: "http://255.255.255.255/" has the broadcast address as '
     'its host; write one such as "http://10.0.0.1:8080/"'),
    ([client(server="http://h/" + "x" * 4096)], f'[0].server: "http://h/{"x" * 70}…" has more than 4096 characters; '
     "write a shorter URL"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "line"), ONE_FINDING, ids=[line[:60] for _, line in ONE_FINDING])
def test_one_finding(entries: Sequence[object], line: str) -> None:
    config, texts = load_entries(*entries)
    assert texts == [f"F: {line}"]
    assert (config is None) == (not line.startswith("warning: "))


def test_transport_mark_is_compared_with_an_incomplete_mark() -> None:
    assert load_entries(client(transport_mark=100, mark={"value": 100}))[1] == [
        "F: [0].transport_mark: 100 is the mark of [0].mark.value too, and the transport would enter its own tunnel; "
        "choose another mark",
        'F: [0].mark.table: is missing; add "table": 100',
    ]
