/* Packets of one flow, merged into a super-packet for one write into the device. Included by _pump.c.
 *
 * gro_udp.py and gro_tcp.py have the rules, and the reasons for them. The differences: each frame is compared with the
 * newest run of its flow, so adjacent frames need not be uniform. Two packets are enough. And a shorter segment may end a
 * run of TCP, as it may end one of UDP.
 *
 * A flow's packets keep their order. Flows may overtake each other. No flow overtakes a packet that belongs to no flow, or
 * is overtaken by it.
 */

#define MAX_L4_AT (HEADER_BYTES + ETHERNET_BYTES + VLAN_BYTES + IPV6_BYTES)
#define UDP_HEADER_BYTES 8
#define TCP_HEADER_BYTES 20
#define MAX_TCP_HEADER_BYTES 60
#define GSO_UDP_L4 5
#define TCP_ACK 0x10
#define TCP_PSH 0x08
#define MAX_RUN 64            /* UDP_MAX_SEGMENTS of linux/udp.h before 6.9 */
#define COPIED_BYTES 256      /* of payload: a longer one is a part of its own, since a copy would cost no less */
#define MAX_GSO_SKIPS 1023    /* datapath/tun_io.py */
#define RUNS 64               /* flows at a time: one bit of Runs.open each */
#define WAYS 4                /* slots in which the run of a flow may be */

/* Frames to write as one. They are spans, linked by Runs.next. All but the last have `size` bytes of payload. Offsets in
 * each frame: ip_at, of its IP header; header, of its payload. */
typedef struct { uint16_t first, last, count, ip_at; uint32_t header, size, bytes, sequence; } Run;

/* The newest runs of one receive. */
typedef struct { uint64_t open, seed; int ethernet; Run run[RUNS]; uint16_t next[MAX_SPANS]; } Runs;

static uint32_t be32(const uint8_t *at) { return (uint32_t)be16(at) << 16 | be16(at + 2); }
static void put16(uint8_t *at, unsigned value) { at[0] = (uint8_t)(value >> 8), at[1] = (uint8_t)value; }

/* The sum of these 16-bit words and `sum`, reduced to 16 bits and not inverted (RFC 1071). */
static unsigned folded(const uint8_t *at, size_t bytes, unsigned sum)
{
	for (size_t i = 0; i < bytes; i += 2)
		sum += be16(at + i);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

static int is_ipv6(const uint8_t *ip) { return ip[0] >> 4 == 6; }
static unsigned protocol_of(const uint8_t *ip) { return ip[is_ipv6(ip) ? 6 : 9]; }
static unsigned ip_bytes_of(const uint8_t *ip) { return is_ipv6(ip) ? IPV6_BYTES : IPV4_BYTES; }

/* Addresses and ports, which are side by side, and their size. */
static const uint8_t *flow_of(const uint8_t *ip, size_t *bytes)
{
	*bytes = is_ipv6(ip) ? 36 : 12;
	return ip + (is_ipv6(ip) ? 8 : 12);
}

/* Whether a frame that has a flow is of that of a run, whose first frame is `a`. The Ethernet header is a part of it. */
static int is_same_flow(const Run *run, const uint8_t *a, const uint8_t *f, unsigned ip_at)
{
	size_t bytes;
	const uint8_t *ip = a + run->ip_at, *other = f + ip_at, *flow = flow_of(ip, &bytes);
	if (is_ipv6(ip) != is_ipv6(other) || protocol_of(ip) != protocol_of(other) || memcmp(flow, flow_of(other, &bytes), bytes))
		return 0;
	return run->ip_at == ip_at && (ip_at == HEADER_BYTES || !memcmp(a + HEADER_BYTES, f + HEADER_BYTES, ip_at - HEADER_BYTES));
}

/* Whether ports are known: UDP or TCP over IPv4 without options or IPv6 without extension headers, no fragment, with a
 * whole header. */
static int has_flow(const uint8_t *f, size_t bytes, unsigned ip_at)
{
	const uint8_t *ip = f + ip_at;
	if (bytes < ip_at + IPV4_BYTES + UDP_HEADER_BYTES)
		return 0;
	if (is_ipv6(ip) ? bytes < ip_at + IPV6_BYTES + UDP_HEADER_BYTES : ip[0] != 0x45 || be16(ip + 6) & 0xbfff)
		return 0;
	return protocol_of(ip) == UDP || (protocol_of(ip) == TCP && bytes >= ip_at + ip_bytes_of(ip) + TCP_HEADER_BYTES);
}

/* The sum of the pseudo-header of an IP packet without options or extension headers (RFC 9293 3.1, RFC 8200 8.1). */
static unsigned pseudo_sum(const uint8_t *ip, unsigned protocol, unsigned l4_bytes)
{
	return ip[0] >> 4 == 6 ? folded(ip + 8, 32, protocol + l4_bytes) : folded(ip + 12, 8, protocol + l4_bytes);
}

/* Where the payload of a frame begins that has a flow and may be merged: its checksums are right, the transport's at
 * least as far as it goes (or the far kernel has verified it), and all lengths agree. 0: it may not. */
static unsigned payload_at(const uint8_t *f, size_t bytes, unsigned ip_at)
{
	const uint8_t *ip = f + ip_at, *l4 = ip + ip_bytes_of(ip);
	unsigned tcp = protocol_of(ip) == TCP, l4_at = ip_at + ip_bytes_of(ip), length = HEADER_BYTES + rd16(f) - ip_at;
	unsigned l4_bytes = length - ip_bytes_of(ip), at = l4_at + (tcp ? (l4[12] >> 4) * 4u : UDP_HEADER_BYTES);
	if (f[3])
		return 0;
	if (is_ipv6(ip) ? be16(ip + 4) != l4_bytes
		: be16(ip + 2) != length || folded(ip, IPV4_BYTES, 0) != 0xffff || be16(ip + 10) == 0xffff || (tcp && !(ip[6] & 0x40)))
		return 0;
	if (tcp ? at < l4_at + TCP_HEADER_BYTES || bytes < at + MIN_GSO_BYTES || l4[12] & 15
			|| (l4[13] | TCP_PSH) != (TCP_ACK | TCP_PSH)
		: bytes <= at || be16(l4 + 4) != l4_bytes)
		return 0;
	if (tcp && f[2] == DATA_VALID)
		return at;
	return f[2] == NEEDS_CSUM && HEADER_BYTES + rd16(f + 8) == l4_at && rd16(f + 10) == (tcp ? 16 : 6)
		&& be16(l4 + (tcp ? 16 : 6)) == pseudo_sum(ip, protocol_of(ip), l4_bytes) ? at : 0;
}

/* Whether a frame that may be merged continues a run of its flow, whose first frame is `a`. */
static int continues(const Run *run, const uint8_t *a, const uint8_t *f, unsigned ip_at, unsigned at, size_t payload)
{
	if (at != run->header || payload > run->size || run->count == MAX_RUN
		|| at - HEADER_BYTES + run->bytes + payload > MAX_PACKET_BYTES)
		return 0;
	/* vnet header, version, then TOS, or traffic class and flow label; fragment field, TTL, protocol, or next header and
	 * hop limit */
	const uint8_t *ip = a + ip_at, *other = f + ip_at;
	if (memcmp(a + LENGTH_BYTES, f + LENGTH_BYTES, VNET_BYTES)
		|| (is_ipv6(other) ? memcmp(ip, other, 4) || memcmp(ip + 6, other + 6, 2) : memcmp(ip, other, 2) || memcmp(ip + 6, other + 6, 4)))
		return 0;
	if (protocol_of(other) == UDP) /* the kernel counts the IDs up */
		return is_ipv6(other) || ip[6] & 0x40 || be16(other + 4) == ((be16(ip + 4) + run->count) & 0xffff);
	/* ACK, data offset; window; urgent pointer, options */
	unsigned l4 = ip_at + ip_bytes_of(other), rest = l4 + 18;
	return be32(f + l4 + 4) == run->sequence && !memcmp(a + l4 + 8, f + l4 + 8, 5) && !memcmp(a + l4 + 14, f + l4 + 14, 2)
		&& !memcmp(a + rest, f + rest, at - rest);
}

/* Write a run as one super-packet. Returns an errno, or 0. */
static int write_merged(int fd, const Run *run, const uint8_t *buf, const Span *span, const uint16_t *next)
{
	const uint8_t *first = buf + span[run->first].start;
	unsigned ip_at = run->ip_at, ip_bytes = ip_bytes_of(first + ip_at), l4_at = ip_at + ip_bytes;
	uint8_t head[MAX_L4_AT + MAX_TCP_HEADER_BYTES + MAX_RUN * COPIED_BYTES], *ip = head + ip_at - LENGTH_BYTES, *l4 = ip + ip_bytes;
	struct iovec part[MAX_RUN + 1] = { { head, run->header - LENGTH_BYTES } };
	unsigned parts = 1, length = run->header - ip_at + run->bytes;
	memcpy(head, first + LENGTH_BYTES, run->header - LENGTH_BYTES);
	for (unsigned n = 0, i = run->first; n < run->count; n++, i = next[i]) {
		const uint8_t *payload = buf + span[i].start + run->header;
		size_t bytes = span[i].stop - span[i].start - run->header;
		if (run->size <= COPIED_BYTES) {
			memcpy(head + part->iov_len, payload, bytes);
			part->iov_len += bytes;
		} else {
			part[parts++] = (struct iovec){ (void *)payload, bytes };
		}
	}
	unsigned protocol = protocol_of(ip);
	int tcp = protocol == TCP, ipv6 = is_ipv6(ip);
	const unsigned vnet[] = { run->header - HEADER_BYTES, run->size, l4_at - HEADER_BYTES, tcp ? 16 : 6, 0 };
	head[0] = NEEDS_CSUM;
	head[1] = !tcp ? GSO_UDP_L4 : ipv6 ? GSO_TCPV6 : GSO_TCPV4;
	for (int i = 0; i < 5; i++) { /* little-endian, unlike IP */
		head[2 + 2 * i] = (uint8_t)vnet[i];
		head[3 + 2 * i] = (uint8_t)(vnet[i] >> 8);
	}
	if (ipv6) {
		put16(ip + 4, length - IPV6_BYTES);
	} else {
		put16(ip + 2, length);
		put16(ip + 10, 0);
		put16(ip + 10, folded(ip, IPV4_BYTES, 0) ^ 0xffff);
	}
	if (tcp)
		l4[13] = buf[span[run->last].start + l4_at + 13]; /* the kernel gives PSH to the last segment only */
	else
		put16(l4 + 4, length - ip_bytes);
	put16(l4 + (tcp ? 16 : 6), pseudo_sum(ip, protocol, length - ip_bytes));
	return writev(fd, part, (int)parts) < 0 ? errno : 0;
}

/* Write a run. Returns whether the device took all of it; otherwise run->first is the first frame that it did not. */
static int write_run(Outlet *outlet, Run *run, const uint8_t *buf, const Span *span, const uint16_t *next)
{
	Gso *gso = outlet->gso + (run->count > 1 && protocol_of(buf + span[run->first].start + run->ip_at) == TCP);
	int error = 0;
	if (run->count > 1 && gso->left) {
		gso->left--;
	} else if (run->count > 1) {
		if (!(error = write_merged(outlet->fd, run, buf, span, next)))
			return gso->known = 1;
		if (error == EAGAIN)
			return 0;
	}
	for (; run->count; run->count--, run->first = next[run->first]) {
		const Span *one = span + run->first;
		if (write(outlet->fd, buf + one->start + LENGTH_BYTES, one->stop - one->start - LENGTH_BYTES) < 0)
			return 0; /* full, refused, or gone: Python writes it once more, and finds out */
	}
	if (error && !gso->known) /* it takes each packet, but has never taken a super-packet */
		gso->left = gso->skips = 2 * gso->skips + 1 < MAX_GSO_SKIPS ? 2 * gso->skips + 1 : MAX_GSO_SKIPS;
	return 1;
}

static int close_run(Outlet *outlet, Runs *runs, unsigned slot, const uint8_t *buf, const Span *span)
{
	if (!write_run(outlet, runs->run + slot, buf, span, runs->next))
		return 0;
	runs->open &= ~(1ull << slot);
	return 1;
}

/* Write all runs. Returns whether the device took them; otherwise those are still open of which it did not take all. */
static int close_runs(Outlet *outlet, Runs *runs, const uint8_t *buf, const Span *span)
{
	while (runs->open)
		if (!close_run(outlet, runs, (unsigned)__builtin_ctzll(runs->open), buf, span))
			return 0;
	return 1;
}

/* The slot with the newest run of a frame's flow, which sets `same`; else one that is free; else one with a run of
 * another flow. */
static unsigned slot_of_flow(const Runs *runs, const uint8_t *f, unsigned ip_at, const uint8_t *buf, const Span *span, int *same)
{
	size_t bytes;
	const uint8_t *flow = flow_of(f + ip_at, &bytes);
	uint64_t h = runs->seed;
	for (size_t i = 0; i < bytes; i += 4) {
		uint32_t word;
		memcpy(&word, flow + i, 4);
		h = (h ^ word) * 0x9e3779b97f4a7c15u;
		h ^= h >> 32;
	}
	unsigned slot = (unsigned)(h * 0x9e3779b97f4a7c15u >> 58), free = RUNS;
	for (unsigned i = 0; i < WAYS; i++) {
		unsigned at = (slot + i) % RUNS;
		if (!(runs->open >> at & 1)) {
			free = at;
			continue;
		}
		if ((*same = is_same_flow(runs->run + at, buf + span[runs->run[at].first].start, f, ip_at)))
			return at;
	}
	return free < RUNS ? free : slot;
}

/* Write a frame, or add it to a run that is written later. Returns whether the device took whatever was written. What it
 * did not take is frame `i`, or in a run that is still open. */
static int write_or_join(Outlet *outlet, Runs *runs, const uint8_t *buf, const Span *span, unsigned i)
{
	const uint8_t *f = buf + span[i].start;
	size_t bytes = span[i].stop - span[i].start;
	unsigned ip_at = runs->ethernet ? ip_in_ethernet(f, bytes) : HEADER_BYTES;
	Run alone = { .first = (uint16_t)i, .last = (uint16_t)i, .count = 1, .ip_at = (uint16_t)ip_at };
	if (!ip_at || !has_flow(f, bytes, ip_at))
		return close_runs(outlet, runs, buf, span) && write_run(outlet, &alone, buf, span, runs->next);
	int same = 0;
	unsigned slot = slot_of_flow(runs, f, ip_at, buf, span, &same), at = payload_at(f, bytes, ip_at);
	Run *run = runs->run + slot;
	size_t payload = bytes - at;
	int open = runs->open >> slot & 1;
	if (same && at && continues(run, buf + span[run->first].start, f, ip_at, at, payload)) {
		runs->next[run->last] = (uint16_t)i;
		run->last = (uint16_t)i;
		run->count++;
	} else {
		if (open && !close_run(outlet, runs, slot, buf, span))
			return 0;
		if (!at)
			return write_run(outlet, &alone, buf, span, runs->next);
		*run = alone;
		run->header = at;
		run->size = (uint32_t)payload;
		runs->open |= 1ull << slot;
	}
	run->bytes += (uint32_t)payload;
	unsigned l4 = ip_at + ip_bytes_of(f + ip_at), tcp = protocol_of(f + ip_at) == TCP;
	if (tcp)
		run->sequence = be32(f + l4 + 4) + (uint32_t)payload;
	if (payload == run->size && !(tcp && f[l4 + 13] & TCP_PSH))
		return 1;
	return close_run(outlet, runs, slot, buf, span); /* nothing may follow */
}
