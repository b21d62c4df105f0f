"""How a server's cost grows with its clients and routes, and how it shares itself among them.

    make bench-scaling
    python -m bench.scaling

- What a packet costs a server with 10, 100 and 1,000 clients, and with 10 and 10,000 routes: its CPU time over the
  packets, at a fixed rate that it can bear. All these servers are up at once and are measured in turn.
- What 500 idle clients cost it: CPU, and memory for each.
- How equal the shares of 8 clients are, each a `tapotun` of its own on a machine of its own, and what a slow client
  next to them costs them.

- How long a bystander's pings are held up by a reload of thousands of clients, and by a scrape of them.

Up to a thousand clients are one process with plain sockets (fakeclients.py). As in the bench, ratios are what counts.
"""
