"""The lines to change in each proxy's config, by fault. docs/deploy.md has the reasons."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from .measured import Kind

Fault: TypeAlias = Literal[
    "upload-held",
    "download-held",
    "upload-limit",
    "idle-upload",
    "idle-download",
    "age-upload",
    "age-download",
    "delay",
    "websocket",
    "upstream",
    "path",
    "forbidden",
]

NAMES: Final[dict[Kind, str]] = {
    "nginx": "nginx",
    "caddy": "Caddy",
    "haproxy": "HAProxy",
    "apache": "Apache httpd",
    "varnish": "Varnish",
    "squid": "Squid",
    "lighttpd": "lighttpd",
    "trafficserver": "Apache Traffic Server",
    "envoy": "Envoy",
    "traefik": "Traefik or another proxy in Go",
    "node": "a proxy in Node.js",
    "cloudflare": "Cloudflare",
    "cloudfront": "CloudFront",
    "fastly": "Fastly",
    "none": "no proxy, the tapotun server itself",
    "unknown": "an unknown proxy",
}

_CLOUDFLARE_BUFFERING: Final = "a Configuration Rule for this path: request and response body buffering none"

_LINES: Final[dict[Kind, dict[Fault, tuple[str, ...]]]] = {
    "nginx": {
        "upload-held": ("proxy_request_buffering off;",),
        "download-held": ("proxy_buffering off;", "no proxy_ignore_headers X-Accel-Buffering"),
        "upload-limit": ("client_max_body_size 0;",),
        "idle-upload": ("client_body_timeout 5m;", "proxy_read_timeout 5m;", "proxy_send_timeout 5m;"),
        "idle-download": ("proxy_read_timeout 5m;", "send_timeout 5m;"),
        "delay": ("tcp_nodelay on;", "no postpone_output"),
        "websocket": (
            "proxy_http_version 1.1;",
            "proxy_set_header Upgrade $http_upgrade;",
            "proxy_set_header Connection $upgrade;",
            "and in http: map $http_upgrade $upgrade { default upgrade; '' ''; }",
        ),
        "upstream": ("proxy_pass: the address where the tapotun server listens (its port or listen)",),
        "path": ("location = {path} {{ proxy_pass ... }} in the server block of this name",),
        "forbidden": ("no deny, auth_basic or auth_request in this location",),
    },
    "caddy": {
        "upload-held": ("no request_buffers (2.6: buffer_requests) in reverse_proxy",),
        "download-held": (
            "no response_buffers (2.6: buffer_responses) in reverse_proxy",
            "no flush_interval above 0",
        ),
        "upload-limit": ("no request_body max_size for this path",),
        "idle-upload": ("no servers timeouts read_body", "no read_timeout in reverse_proxy's transport http"),
        "idle-download": ("no servers timeouts write", "no read_timeout in reverse_proxy's transport http"),
        "age-upload": ("no servers timeouts read_body",),
        "age-download": ("no servers timeouts write",),
        "delay": ("no flush_interval above 0 in reverse_proxy",),
        "websocket": ("no header_up that changes Connection or Upgrade in reverse_proxy",),
        "upstream": ("reverse_proxy: the address where the tapotun server listens (its port or listen)",),
        "path": ("handle {path} {{ reverse_proxy ... }} in the site of this name",),
        "forbidden": ("no basicauth, forward_auth or respond 403 for this path",),
    },
    "haproxy": {
        "upload-held": ("no option http-buffer-request",),
        "download-held": ("option http-no-delay", "no filter compression"),
        "upload-limit": ("no http-request deny on req.body_size",),
        "idle-upload": ("timeout client 5m", "timeout server 5m"),
        "idle-download": ("timeout server 5m", "timeout client 5m"),
        "delay": ("option http-no-delay",),
        "websocket": ("no http-request del-header or rule that removes Upgrade or Connection", "timeout tunnel 5m"),
        "upstream": ("server: the address where the tapotun server listens (its port or listen)",),
        "path": ("a use_backend or http-request rule that lets path {path} pass",),
        "forbidden": ("no http-request deny or auth for this path",),
    },
    "apache": {
        "upload-held": ("SetEnv proxy-prefetch-nonblocking 1", "no SetEnv proxy-sendcl"),
        "download-held": ("no SetOutputFilter for this path",),
        "upload-limit": ("LimitRequestBody 0",),
        "idle-upload": ("RequestReadTimeout body=0", "Timeout 300", "ProxyPass ... timeout=300 (or ProxyTimeout 300)"),
        "idle-download": ("ProxyPass ... timeout=300 (or ProxyTimeout 300)", "Timeout 300"),
        "delay": ("ProxyPass ... flushpackets=on",),
        "websocket": ("ProxyPass ... upgrade=websocket (2.4.47 and newer)",),
        "upstream": ("ProxyPass: the address where the tapotun server listens (its port or listen)",),
        "path": ("<Location {path}> with ProxyPass in the VirtualHost of this name",),
        "forbidden": ("no Require, AuthType or Deny in this Location",),
    },
    "varnish": {
        "upload-held": ("in vcl_recv: return (pipe) for path {path}",),
        "download-held": ("in vcl_recv: return (pipe) for path {path}",),
        "idle-upload": ("-p timeout_idle=300", "-p pipe_timeout=300"),
        "idle-download": (".between_bytes_timeout = 300s in the backend", "-p pipe_timeout=300"),
        "websocket": (
            "in vcl_recv: return (pipe) if req.http.upgrade is set",
            "in vcl_pipe: set bereq.http.upgrade = req.http.upgrade; set bereq.http.connection = req.http.connection;",
        ),
        "upstream": (".host and .port of the backend: where the tapotun server listens",),
        "path": ("in vcl_recv: req.backend_hint for path {path}",),
        "forbidden": ("no return (synth(403)) in vcl_recv for path {path}",),
    },
    "squid": {
        "upload-limit": ("request_body_max_size 0",),
        "idle-upload": ("request_timeout and read_timeout 15 minutes", "client_lifetime 1 day"),
        "idle-download": ("read_timeout 15 minutes",),
        "websocket": ("http_upgrade_request_protocols websocket allow all",),
        "upstream": ("cache_peer: the address where the tapotun server listens (its port or listen)",),
        "forbidden": ("http_access allow for this path",),
    },
    "lighttpd": {
        "upload-held": ("server.stream-request-body = 2",),
        "download-held": ("server.stream-response-body = 2",),
        "upload-limit": ("server.max-request-size = 0",),
        "idle-upload": ("server.max-read-idle = 300",),
        "idle-download": ("server.max-write-idle = 3600",),
        "websocket": ('proxy.header = ( "upgrade" => "enable" )',),
        "upstream": ("proxy.server: the address where the tapotun server listens (its port or listen)",),
        "path": ('$HTTP["url"] == "{path}" {{ proxy.server = ... }}',),
        "forbidden": ("no url.access-deny or auth.require for this path",),
    },
    "trafficserver": {
        "upload-held": ("proxy.config.http.request_buffer_enabled 0",),
        "idle-upload": (
            "proxy.config.http.transaction_no_activity_timeout_in 300",
            "proxy.config.http.transaction_no_activity_timeout_out 300",
        ),
        "idle-download": (
            "proxy.config.http.transaction_no_activity_timeout_in 300",
            "proxy.config.http.transaction_no_activity_timeout_out 300",
        ),
        "websocket": ("a remap rule from ws:// or wss:// as well",),
        "upstream": ("remap.config: the address where the tapotun server listens (its port or listen)",),
        "path": ("a remap rule for path {path}",),
    },
    "envoy": {
        "upload-held": ("no envoy.filters.http.buffer for this route",),
        "download-held": ("no compressor or buffer filter for this route",),
        "idle-upload": ("stream_idle_timeout: 300s", "no request_timeout", "timeout: 0s in the route"),
        "idle-download": ("stream_idle_timeout: 300s", "timeout: 0s in the route"),
        "websocket": ("upgrade_configs: [{ upgrade_type: websocket }]",),
        "upstream": ("the cluster's endpoint: where the tapotun server listens (its port or listen)",),
        "path": ("a route that matches path {path}",),
    },
    "traefik": {
        "upload-held": ("no buffering middleware for this router",),
        "download-held": ("no buffering or compress middleware for this router",),
        "upload-limit": ("no maxRequestBodyBytes",),
        "idle-upload": ("entryPoints.NAME.transport.respondingTimeouts.readTimeout: 0",),
        "idle-download": ("entryPoints.NAME.transport.respondingTimeouts.writeTimeout: 0",),
        "upstream": ("the service's url: where the tapotun server listens (its port or listen)",),
        "path": ("a router with the rule Path(`{path}`)",),
        "forbidden": ("no ipAllowList, basicAuth or forwardAuth middleware for this router",),
    },
    "node": {
        "idle-upload": ("server.requestTimeout = 0", "server.timeout = 0"),
        "idle-download": ("server.timeout = 0", "no proxyTimeout"),
        "websocket": ("server.on('upgrade', (request, socket, head) => proxy.ws(request, socket, head))",),
        "upstream": ("target: the address where the tapotun server listens (its port or listen)",),
    },
    "cloudflare": {
        "upload-held": (_CLOUDFLARE_BUFFERING,),
        "download-held": (_CLOUDFLARE_BUFFERING,),
        "idle-download": ("Proxy Read Timeout above the server's keepalive",),
        "websocket": ("Network / WebSockets: on",),
    },
    "cloudfront": {
        "upload-held": ('a WebSocket, with all headers forwarded: "transport": "websocket"',),
        "idle-download": ("origin response timeout 60 s",),
    },
    "fastly": {
        "download-held": ("beresp.do_stream in VCL",),
        "websocket": ("WebSockets, which are off by default",),
    },
}

_ANY: Final[dict[Fault, tuple[str, ...]]] = {
    "upload-held": ("forward a request's body as it arrives (in nginx: proxy_request_buffering off)",),
    "download-held": ("forward a response's body as it arrives (in nginx: proxy_buffering off)",),
    "upload-limit": ("no limit on the size of a request's body",),
    "idle-upload": ("a timeout of 5 minutes for a silent request body",),
    "idle-download": ("a timeout of 5 minutes for a silent response",),
    "age-upload": ("no limit on the duration of a request",),
    "age-download": ("no limit on the duration of a response",),
    "delay": ("forward small pieces at once (no Nagle, no delayed flush)",),
    "websocket": ("forward Upgrade and Connection",),
    "upstream": ("the address where the tapotun server listens",),
    "path": ("a route for {path} to the tapotun server",),
    "forbidden": ("no rule that refuses this path",),
}


def lines(kind: Kind, fault: Fault, path: str = "/") -> list[str]:
    """The lines that the proxy's config should have, or should not have (``no ...``). ``path``: the URL's path."""
    found = _LINES.get(kind, {}).get(fault) or _ANY[fault]
    return [line.replace("{path}", path).replace("{{", "{").replace("}}", "}") for line in found]
