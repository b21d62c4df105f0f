/* Fuzzes datapath/_pump.c with libFuzzer: a socket, two peers and a device that do whatever the input says.
 *
 *     input:  u16 size of the program | the program | what the stream brings
 *
 * The highest bit of the size says that the frames carry Ethernet frames, the next one that there is TLS: then the stream
 * comes in records, and what goes to the peers is sealed. The ciphers here change nothing, and a tag is the nonce, so a
 * record number that was used twice or left out shows.
 *
 * The program decides what is called, and what each system call does: how much it takes or brings, and its errors, those
 * of malloc too. Nothing is a real descriptor, and time is what the program says, so every input runs the same again.
 *
 * What is checked, besides what the sanitizers see:
 * - The frames of the stream come out in order, whole and unchanged, each once: at the device, or shown to Python. Only
 *   those for which the pump has been told so may go elsewhere (see `way_of`). Of UDP and TCP only each flow is in order.
 * - A super-packet at the device, cut as the kernel cuts it, is such frames, all of them intact.
 * - What goes to each peer, with what the pump hands back of it, is well-formed chunks of whole frames.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static ssize_t fake_read(int fd, void *to, size_t size);
static ssize_t fake_write(int fd, const void *from, size_t size);
static ssize_t fake_writev(int fd, const struct iovec *part, int parts);
static ssize_t fake_recv(int fd, void *to, size_t size, int flags);
static ssize_t fake_send(int fd, const void *from, size_t size, int flags);
static ssize_t fake_sendmsg(int fd, const struct msghdr *message, int flags);
static int fake_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event);
static int fake_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout_ms);
static int fake_clock(struct timespec *now);
static int has_memory(void);

#define read(fd, to, size) fake_read(fd, to, size)
#define write(fd, from, size) fake_write(fd, from, size)
#define writev(fd, part, parts) fake_writev(fd, part, parts)
#define recv(fd, to, size, flags) fake_recv(fd, to, size, flags)
#define send(fd, from, size, flags) fake_send(fd, from, size, flags)
#define sendmsg(fd, message, flags) fake_sendmsg(fd, message, flags)
#define epoll_create1(flags) 1000
#define epoll_ctl(epoll, op, fd, event) fake_epoll_ctl(epoll, op, fd, event)
#define epoll_wait(epoll, events, most, timeout) fake_epoll_wait(epoll, events, most, timeout)
#define clock_gettime(which, now) fake_clock(now)
#define close(fd) ((void)(fd))
#define malloc(size) (has_memory() ? (malloc)(size) : NULL)
#define calloc(count, size) (has_memory() ? (calloc)(count, size) : NULL)
#define realloc(at, size) (has_memory() ? (realloc)(at, size) : NULL)
#include "../tapotun_trio/datapath/_pump.c"
#undef malloc
#undef calloc
#undef realloc

#define CHECK(what) ((what) ? (void)0 : (fprintf(stderr, "line %d: %s\n", __LINE__, #what), abort()))
#define FDS 8
#define PEERS 2
enum { TRIO = 0, STREAM = 1, DEVICE_A = 2, DEVICE_B = 3, PEER = 4 };
#define OUT_BYTES (16u << 20)
#define BUFFER_BYTES (256 * 1024)
#define SLAB_BYTES (256 * 1024)
#define RAW_BYTES (128 * 1024)
#define BURST (120 * 1024)

static struct { const uint8_t *at; size_t left; } program, stream;
/* The records that the stream comes in: where each ends, and its content. */
static struct { size_t end, size; const uint8_t *content; } *record;
static size_t records_come, records, stream_come, damaged;
static struct { int watched; uint32_t events; uint64_t tag; } watch[FDS];
static uint64_t now_ns;
static unsigned fail_at, allocations;
static int ethernet, secure;
static unsigned least; /* bytes of a packet or an Ethernet frame */

/* What the stream brought, out of its chunks; `seen`: where the next frame begins that has not come out. */
static uint8_t *payload;
static size_t payload_bytes, seen;
static uint8_t *gone; /* 1 where a frame begins behind `seen` that has come out, or cannot any more */
static struct { uint64_t left, size; int state, digits, stopped; } ref;
/* What each peer got since its chunks began; with TLS, `number` is that of the next record. */
static struct { uint8_t *bytes; size_t size; int broken; uint64_t number; } out[PEERS];

static unsigned next(void)
{
	if (!program.left)
		return 0;
	program.left--;
	return *program.at++;
}

/* The Internet checksum of these bytes and a number, not inverted. */
static unsigned sum(const uint8_t *at, size_t bytes, unsigned total)
{
	for (size_t i = 0; i < bytes; i += 2)
		total += (unsigned)(at[i] << 8 | at[i + 1]);
	while (total >> 16)
		total = (total & 0xffff) + (total >> 16);
	return total;
}

static unsigned next16(void) { return next() | next() << 8; }

static int has_memory(void) { return ++allocations != fail_at; }

/* Where Python says that a frame goes, by the last byte of its destination; of IPv6, by a byte of its source. */
static unsigned address_of(const uint8_t *frame) { return frame[HEADER_BYTES + (ethernet ? 5 : 19)]; }
static int way_of(const uint8_t *frame) { return address_of(frame) & 3; }
enum { TO_DEVICE, TO_NOBODY, TO_PEER, NOT_LEARNED };

/* ---- the reference: the same bytes, one by one */

static void ref_take(uint8_t c)
{
	enum { SIZE, LF, DATA, END_CR, END_LF };
	if (ref.stopped)
		return;
	switch (ref.state) {
	case SIZE: {
		int v = hex(c);
		if (v >= 0 && ref.digits < 15) {
			ref.size = ref.size << 4 | (unsigned)v;
			ref.digits++;
		} else if (c == '\r' && ref.size)
			ref.state = LF;
		else
			ref.stopped = 1;
		break;
	}
	case LF:
		ref.stopped = c != '\n';
		ref.left = ref.size;
		ref.state = DATA;
		break;
	case DATA:
		payload[payload_bytes++] = c;
		if (!--ref.left)
			ref.state = END_CR;
		break;
	case END_CR:
		ref.stopped = c != '\r';
		ref.state = END_LF;
		break;
	default:
		ref.stopped = c != '\n';
		ref.state = SIZE;
		ref.size = 0;
		ref.digits = 0;
	}
}

/* Where in a frame the IP header begins, if it has no options, is no fragment's, and a whole header of UDP or TCP is
 * behind it; 0: there is none. `bytes`: behind the vnet header. */
static size_t ip_of_flow(const uint8_t *frame, size_t bytes)
{
	size_t at = HEADER_BYTES, end = HEADER_BYTES + bytes;
	if (ethernet) {
		if (end < 48)
			return 0;
		at = !memcmp(frame + 26, "\x81\0", 2) || !memcmp(frame + 26, "\x88\xa8", 2) ? 32 : 28;
		if (memcmp(frame + at - 2, frame[at] >> 4 == 6 ? "\x86\xdd" : "\x08\0", 2))
			return 0;
	}
	if (end < at + 28)
		return 0;
	const uint8_t *ip = frame + at;
	size_t header = ip[0] >> 4 == 6 ? 40 : 20;
	unsigned protocol = ip[header == 40 ? 6 : 9];
	if (header == 20 && (ip[0] != 0x45 || ip[6] & 0xbf || ip[7]))
		return 0;
	return (protocol == 17 && end >= at + header + 8) || (protocol == 6 && end >= at + header + 20) ? at : 0;
}

/* Frames that are of one flow keep their order; one without a flow is not overtaken, and overtakes none. */
static int may_overtake(const uint8_t *body, size_t size, const uint8_t *frame)
{
	const uint8_t *other = body - LENGTH_BYTES;
	size_t a = ip_of_flow(other, size - VNET_BYTES), b = ip_of_flow(frame, rd16(frame));
	if (!a || !b)
		return 0;
	if (a != b || memcmp(other + HEADER_BYTES, frame + HEADER_BYTES, a - HEADER_BYTES) || other[a] >> 4 != frame[a] >> 4)
		return 1;
	if (other[a] >> 4 == 6)
		return other[a + 6] != frame[a + 6] || memcmp(other + a + 8, frame + a + 8, 36);
	return other[a + 9] != frame[a + 9] || memcmp(other + a + 12, frame + a + 12, 12);
}

/* Whether a piece of a super-packet is this frame: the kernel counts IDs up, which nobody needs where DF is set, and
 * calculates the checksums. */
static int is_piece(const uint8_t *piece, const uint8_t *frame, size_t size)
{
	size_t at = ip_of_flow(frame, rd16(frame));
	if (!at || size - VNET_BYTES != rd16(frame) || memcmp(piece + VNET_BYTES, frame + HEADER_BYTES, at - HEADER_BYTES))
		return 0;
	const uint8_t *a = piece + at - LENGTH_BYTES, *b = frame + at;
	int six = b[0] >> 4 == 6;
	size_t header = six ? 40 : 20, bytes = HEADER_BYTES + rd16(frame) - at;
	unsigned protocol = b[six ? 6 : 9];
	size_t check = header + (protocol == 6 ? 16 : 6);
	if (six ? memcmp(a, b, 40)
		: memcmp(a, b, 4) || (!(b[6] & 0x40) && memcmp(a + 4, b + 4, 2)) || memcmp(a + 6, b + 6, 4) || memcmp(a + 12, b + 12, 8))
		return 0;
	if (memcmp(a + header, b + header, check - header) || memcmp(a + check + 2, b + check + 2, bytes - check - 2))
		return 0;
	/* A damaged frame must not be made to look intact. */
	unsigned pseudo = sum(six ? b + 8 : b + 12, six ? 32 : 8, protocol + (unsigned)(bytes - header));
	return (six || sum(b, 20, 0) == 0xffff) && (frame[2] == DATA_VALID ? protocol == 6
		: frame[2] == NEEDS_CSUM && rd16(frame + 8) == at + header - HEADER_BYTES && (unsigned)(b[check] << 8 | b[check + 1]) == pseudo);
}

/* A frame has come out, from its vnet header on; `piece`: of a super-packet. */
static void came_out(const uint8_t *body, size_t size, int piece)
{
	size_t at = seen, length;
	for (;; at += length ? HEADER_BYTES + length : 2) {
		CHECK(payload_bytes - at >= 2);
		const uint8_t *frame = payload + at;
		length = rd16(frame);
		if (!length || gone[at])
			continue;
		CHECK(length >= least && payload_bytes - at >= HEADER_BYTES + length);
		if (piece ? is_piece(body, frame, size) : size == VNET_BYTES + length && !memcmp(body, frame + LENGTH_BYTES, size))
			break;
		if (may_overtake(body, size, frame))
			continue;
		int way = way_of(frame);
		CHECK(way == TO_NOBODY || way == TO_PEER);
		gone[at] = 1;
	}
	gone[at] = 1;
	while (payload_bytes - seen >= 2) {
		length = rd16(payload + seen);
		if (length && !gone[seen])
			break;
		gone[seen] = 0;
		seen += length ? HEADER_BYTES + length : 2;
	}
}

/* A super-packet has come out: the frames that the kernel makes of it. */
static void came_out_merged(const uint8_t *body, size_t size)
{
	static uint8_t piece[VNET_BYTES + MAX_PACKET_BYTES];
	CHECK(size > VNET_BYTES + 28 && size <= VNET_BYTES + MAX_PACKET_BYTES);
	size_t at = ip_of_flow(body - LENGTH_BYTES, size - VNET_BYTES);
	CHECK(at);
	at -= LENGTH_BYTES;
	const uint8_t *ip = body + at;
	int tcp = body[1] != 5, six = ip[0] >> 4 == 6;
	size_t ip_header = six ? 40 : 20, header = VNET_BYTES + rd16(body + 2), most = rd16(body + 4), length = size - at;
	const uint8_t *l4 = ip + ip_header;
	CHECK(size > header && ip[six ? 6 : 9] == (tcp ? 6 : 17) && body[1] == (!tcp ? 5 : six ? 4 : 1));
	CHECK(body[0] == NEEDS_CSUM && rd16(body + 6) == at + ip_header - VNET_BYTES && rd16(body + 8) == (tcp ? 16 : 6) && !rd16(body + 10));
	CHECK(header == at + ip_header + (tcp ? (l4[12] >> 4) * 4u : 8) && most >= (tcp ? 8 : 1) && size - header > most && size - header <= 64 * most);
	CHECK(six ? (size_t)(ip[4] << 8 | ip[5]) == length - 40 : (size_t)(ip[2] << 8 | ip[3]) == length && sum(ip, 20, 0) == 0xffff);
	CHECK(tcp || (size_t)(l4[4] << 8 | l4[5]) == length - ip_header);
	CHECK((unsigned)(tcp ? l4[16] << 8 | l4[17] : l4[6] << 8 | l4[7])
		== sum(six ? ip + 8 : ip + 12, six ? 32 : 8, (tcp ? 6 : 17) + (unsigned)(length - ip_header)));
	for (size_t from = header, number = 0; from < size; from += most, number++) {
		size_t bytes = size - from < most ? size - from : most, all = header - at + bytes;
		uint8_t *to = piece + at, *above = to + ip_header;
		memcpy(piece, body, header);
		memcpy(piece + header, body + from, bytes);
		if (six) {
			to[4] = (uint8_t)((all - 40) >> 8), to[5] = (uint8_t)(all - 40);
		} else {
			to[2] = (uint8_t)(all >> 8), to[3] = (uint8_t)all;
			unsigned ident = (unsigned)(ip[4] << 8 | ip[5]) + (unsigned)number;
			to[4] = (uint8_t)(ident >> 8), to[5] = (uint8_t)ident;
		}
		if (tcp) {
			uint32_t sequence = ((uint32_t)l4[4] << 24 | (uint32_t)l4[5] << 16 | (uint32_t)l4[6] << 8 | l4[7]) + (uint32_t)(from - header);
			for (int i = 0; i < 4; i++)
				above[4 + i] = (uint8_t)(sequence >> (24 - 8 * i));
			if (from + bytes < size)
				above[13] &= (uint8_t)~8u; /* PSH */
		} else {
			above[4] = (uint8_t)((all - ip_header) >> 8), above[5] = (uint8_t)(all - ip_header);
		}
		came_out(piece, header + bytes, 1);
	}
}

/* ---- TLS */

struct evp_cipher_ctx { uint8_t nonce[IV_BYTES], tag[IV_BYTES]; int opens; };
static unsigned cipher_calls, cipher_fails_at;

static Context *fake_context(void) { return (calloc)(1, sizeof(Context)); }
static void fake_end(Context *context) { free(context); }
static void fake_clear(void) { }
static const void *fake_kind(void) { return "any"; }

static int fake_begin(Context *context, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int encrypt)
{
	(void)cipher, (void)engine, (void)key, (void)encrypt;
	if (iv)
		memcpy(context->nonce, iv, IV_BYTES);
	return 1;
}

static int fake_update(Context *context, uint8_t *to, int *written, const uint8_t *from, int size)
{
	(void)context;
	if (to)
		memcpy(to, from, (size_t)size);
	*written = size;
	return ++cipher_calls != cipher_fails_at;
}

static int fake_final(Context *context, uint8_t *to, int *written)
{
	int good = !context->opens || !memcmp(context->tag, context->nonce, IV_BYTES);
	(void)to;
	context->opens = *written = 0;
	return good;
}

static int fake_control(Context *context, int what, int size, void *data)
{
	CHECK(size == TAG_BYTES);
	if (what == SET_TAG)
		memcpy(context->tag, data, IV_BYTES), context->opens = 1;
	else
		memset(data, 0, TAG_BYTES), memcpy(data, context->nonce, IV_BYTES);
	return 1;
}

static uint8_t *fake_hmac(const void *hash, const void *key, int key_bytes, const uint8_t *data, size_t bytes, uint8_t *to, unsigned *written)
{
	(void)hash, (void)key, (void)key_bytes, (void)data, (void)bytes;
	*written = 48;
	return memset(to, 0, *written);
}

static void fake_crypto(void)
{
	crypto.create = fake_context, crypto.destroy = fake_end, crypto.init = fake_begin, crypto.update = fake_update;
	crypto.final = fake_final, crypto.control = fake_control, crypto.hmac = fake_hmac, crypto.clear_errors = fake_clear;
	for (int i = 0; i < 3; i++)
		crypto.cipher[i] = crypto.hash[i] = fake_kind;
	crypto.loaded = 1;
}

static void number_tag(uint8_t *tag, uint64_t number)
{
	memset(tag, 0, TAG_BYTES);
	for (int i = 0; i < 8; i++)
		tag[IV_BYTES - 1 - i] = (uint8_t)(number >> 8 * i);
}

/* Put a record behind the others. */
static void put_record(uint8_t *records, size_t *at, uint64_t number, unsigned kind, const uint8_t *content, size_t size, size_t padding)
{
	size_t body = size + 1 + padding + TAG_BYTES;
	uint8_t *to = records + *at;
	to[0] = APPLICATION_DATA, to[1] = to[2] = 3, to[3] = (uint8_t)(body >> 8), to[4] = (uint8_t)body;
	memcpy(to + RECORD_HEAD, content, size);
	to[RECORD_HEAD + size] = (uint8_t)kind;
	memset(to + RECORD_HEAD + size + 1, 0, padding);
	number_tag(to + RECORD_HEAD + size + 1 + padding, number);
	*at += RECORD_HEAD + body;
}

/* Make records of the stream: of which size, after how many there are others than data, and which one is damaged, the
 * program says. */
static void make_records(void)
{
	static const uint8_t update[] = { 24, 0, 0, 1, 1 };
	static uint8_t *bytes;
	size_t at = 0, most = next() * 67u, every = next(), count = 0, start;
	uint64_t number = 0;
	damaged = next();
	free(bytes);
	free(record);
	bytes = malloc(64 * stream.left + 1024);
	record = malloc((stream.left + 1) * sizeof *record);
	records = records_come = stream_come = 0;
	for (size_t from = 0; from < stream.left; count++) {
		size_t size = most && most < RECORD_BYTES ? most : RECORD_BYTES;
		if (size > stream.left - from)
			size = stream.left - from;
		if (every && count % every == every - 1) {
			put_record(bytes, &at, number++, every & 1 ? HANDSHAKE : APPLICATION_DATA, update, every & 1 ? sizeof update : 0, 0);
			number = every & 1 ? 0 : number;
		}
		start = at;
		put_record(bytes, &at, number++, APPLICATION_DATA, stream.at + from, size, count % 7 == 3 ? count % (MAX_EXPANSION - TAG_BYTES) : 0);
		if (damaged && count == damaged)
			bytes[start + RECORD_HEAD + size / 2] ^= 1, bytes[at - 5] ^= 1;
		record[records].end = at;
		record[records].size = size;
		record[records++].content = stream.at + from;
		from += size;
	}
	stream.at = bytes;
	stream.left = at;
}

/* Replace what a peer got by what is in its records; all of them must be whole, and have their numbers. */
static void unseal(int peer)
{
	uint8_t *from = out[peer].bytes, *end = from + out[peer].size, *to = from, tag[TAG_BYTES];
	while (from < end) {
		CHECK(end - from >= RECORD_HEAD);
		size_t body = body_bytes(from);
		CHECK(body && (size_t)(end - from) >= RECORD_HEAD + body);
		number_tag(tag, out[peer].number++);
		CHECK(!memcmp(from + RECORD_HEAD + body - TAG_BYTES, tag, IV_BYTES));
		size_t size = body - TAG_BYTES - 1;
		if (from[RECORD_HEAD + size] == HANDSHAKE) {
			CHECK(size == KEY_UPDATE_BYTES);
			out[peer].number = 0;
		} else {
			CHECK(from[RECORD_HEAD + size] == APPLICATION_DATA);
			memmove(to, from + RECORD_HEAD, size);
			to += size;
		}
		from += RECORD_HEAD + body;
	}
	out[peer].size = (size_t)(to - out[peer].bytes);
}

/* Whether these are chunks of whole frames, and nothing else, is checked. */
static void check_whole(const uint8_t *at, const uint8_t *end)
{
	while (at < end) {
		size_t size = 0;
		int v;
		for (; at < end && (v = hex(*at)) >= 0; at++)
			size = size << 4 | (unsigned)v;
		CHECK(size && end - at >= 4 && at[0] == '\r' && at[1] == '\n' && (size_t)(end - at) >= size + 4);
		const uint8_t *frame = at + 2, *stop = frame + size;
		CHECK(stop[0] == '\r' && stop[1] == '\n');
		while (frame < stop) {
			CHECK((size_t)(stop - frame) >= HEADER_BYTES + least);
			CHECK(way_of(frame) == TO_PEER);
			frame += HEADER_BYTES + rd16(frame);
		}
		CHECK(frame == stop);
		at = stop + 2;
	}
}

static void check_chunks(int peer)
{
	if (!out[peer].broken) {
		if (secure)
			unseal(peer);
		check_whole(out[peer].bytes, out[peer].bytes + out[peer].size);
	}
	out[peer].size = 0;
	out[peer].broken = 0;
}

/* ---- system calls */

static int failing(unsigned what)
{
	errno = what == 1 ? EINTR : what == 2 ? ECONNRESET : what == 3 ? EINVAL : EAGAIN;
	return -1;
}

static ssize_t fake_read(int fd, void *to, size_t size)
{
	static const uint8_t start[VNET_BYTES + 10] = { [VNET_BYTES] = 0x45, [VNET_BYTES + 9] = 17 };
	unsigned what = next(), length = what & 8 ? next16() : what & 16 ? 12 + next() : 1412;
	CHECK(fd == DEVICE_A || fd == DEVICE_B);
	if (what % 8 < 4)
		return failing(what % 8);
	CHECK(size == VNET_BYTES + MAX_PACKET_BYTES + (size_t)ethernet);
	if (length > size)
		length = (unsigned)size;
	memset(to, 0, length);
	memset((uint8_t *)to + length, 0xEE, size - length < 100 ? size - length : 100);
	if (ethernet) {
		static const uint8_t head[] = { 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0x08, 0, 0x45 };
		if (length >= VNET_BYTES + sizeof head) {
			memcpy((uint8_t *)to + VNET_BYTES, head, sizeof head);
			((uint8_t *)to)[VNET_BYTES + 5] = (uint8_t)(what >> 5);
			((uint8_t *)to)[VNET_BYTES + 12] = what == 255 ? 0x81 : 0x08;
		}
		return (ssize_t)length;
	}
	memcpy(to, start, length < sizeof start ? length : sizeof start);
	if (length >= VNET_BYTES + 20) {
		((uint8_t *)to)[VNET_BYTES + 19] = (uint8_t)(what >> 5);
		if (what == 255)
			((uint8_t *)to)[VNET_BYTES] = 0x60;
	}
	return (ssize_t)length;
}

static ssize_t fake_write(int fd, const void *from, size_t size)
{
	unsigned what = next();
	CHECK(fd == DEVICE_A);
	if (what % 16 && what % 16 < 5)
		return failing(what % 16);
	came_out(from, size, 0);
	return (ssize_t)size;
}

static ssize_t fake_writev(int fd, const struct iovec *part, int parts)
{
	static uint8_t all[VNET_BYTES + MAX_PACKET_BYTES];
	size_t size = 0;
	unsigned what = next();
	CHECK(fd == DEVICE_A && parts >= 1 && parts <= 65);
	for (int i = 0; i < parts; size += part[i++].iov_len) {
		CHECK(part[i].iov_len && part[i].iov_len <= sizeof all - size);
		memcpy(all + size, part[i].iov_base, part[i].iov_len);
	}
	if (what % 16 && what % 16 < 5)
		return failing(what % 16);
	came_out_merged(all, size);
	return (ssize_t)size;
}

static ssize_t fake_recv(int fd, void *to, size_t size, int flags)
{
	unsigned what = next();
	size_t most = what & 64 ? next() : what & 128 ? next16() * 4u : size;
	CHECK(fd == STREAM && size >= (secure ? MAX_RECORD_BYTES : MAX_FRAME_BYTES) && flags == MSG_DONTWAIT);
	if (what % 16 && what % 16 < 4)
		return failing(what % 16);
	if (what % 16 == 5)
		return 0;
	if (most > size)
		most = size;
	if (most > stream.left)
		most = stream.left;
	if (!most)
		return failing(0);
	memcpy(to, stream.at, most);
	memset((uint8_t *)to + most, 0xEE, size - most < 100 ? size - most : 100); /* nobody may rely on what was there */
	for (size_t i = 0; i < most && !secure; i++)
		ref_take(stream.at[i]);
	stream.at += most;
	stream.left -= most;
	for (stream_come += most; secure && records_come < records && record[records_come].end <= stream_come; records_come++)
		for (size_t i = 0; i < record[records_come].size; i++)
			ref_take(record[records_come].content[i]);
	return (ssize_t)most;
}

static ssize_t took(int peer, size_t size, unsigned *error)
{
	unsigned what = next();
	CHECK(peer >= 0 && peer < PEERS && size);
	if (what % 8 && what % 8 < 4) {
		out[peer].broken |= what % 8 > 1;
		*error = 1;
		return failing(what % 8);
	}
	if (what & 128 && size > 1)
		return (ssize_t)(1 + (what & 64 ? size * (what & 15) / 16 : what & 31) % (size - 1));
	return (ssize_t)size;
}

static void got(int peer, const void *from, size_t size)
{
	CHECK(out[peer].size + size <= OUT_BYTES);
	memcpy(out[peer].bytes + out[peer].size, from, size);
	out[peer].size += size;
}

static ssize_t fake_send(int fd, const void *from, size_t size, int flags)
{
	unsigned error = 0;
	ssize_t n = took(fd - PEER, size, &error);
	CHECK(flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
	if (!error)
		got(fd - PEER, from, (size_t)n);
	return n;
}

static ssize_t fake_sendmsg(int fd, const struct msghdr *message, int flags)
{
	size_t size = 0;
	unsigned error = 0;
	CHECK(flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
	for (size_t i = 0; i < message->msg_iovlen; i++)
		size += message->msg_iov[i].iov_len;
	ssize_t n = took(fd - PEER, size, &error);
	size_t left = error ? 0 : (size_t)n;
	for (size_t i = 0; i < message->msg_iovlen && left; i++) {
		size_t part = message->msg_iov[i].iov_len < left ? message->msg_iov[i].iov_len : left;
		got(fd - PEER, message->msg_iov[i].iov_base, part);
		left -= part;
	}
	return n;
}

static int fake_epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
	if (epoll < 0)
		return errno = EBADF, -1;
	CHECK(epoll == 1000);
	if (fd < 0 || fd >= FDS)
		return errno = EBADF, -1;
	if (watch[fd].watched == (op == EPOLL_CTL_ADD))
		return errno = op == EPOLL_CTL_ADD ? EEXIST : ENOENT, -1;
	if (op == EPOLL_CTL_ADD && next() == 255)
		return errno = ENOSPC, -1;
	watch[fd].watched = op != EPOLL_CTL_DEL;
	watch[fd].events = event->events;
	watch[fd].tag = event->data.u64;
	return 0;
}

static int fake_epoll_wait(int epoll, struct epoll_event *events, int most, int timeout_ms)
{
	unsigned ready = next(), errors = ready & 128 ? next() : 0;
	int found = 0;
	if (epoll < 0)
		return errno = EBADF, -1;
	CHECK(epoll == 1000);
	if (ready == 0x7f)
		return failing(1);
	for (int fd = 0; fd < FDS && found < most; fd++) {
		uint32_t what = watch[fd].events;
		if (errors >> fd & 1)
			what |= EPOLLERR | EPOLLHUP;
		if (watch[fd].watched && what && (ready >> fd & 1 || errors >> fd & 1))
			events[found++] = (struct epoll_event){ .events = what, .data.u64 = watch[fd].tag };
	}
	now_ns += found ? 1000 : (uint64_t)timeout_ms * 1000000 + 1;
	return found;
}

static int fake_clock(struct timespec *now)
{
	now_ns += 100;
	now->tv_sec = (time_t)(now_ns / 1000000000);
	now->tv_nsec = (long)(now_ns % 1000000000);
	return 0;
}

/* ---- what Python would do */

static PyObject *type, *rules, *ethernet_rules;
static struct {
	PyObject *pump, *buffer, *slab, *raw, *opens, *seals[PEERS]; /* opens, seals: NULL without TLS */
	unsigned long long table, outlet, reader, inlet, port[PEERS];
	int attached[PEERS], failed, over; /* over: the pump receives nothing more */
} world;

/* Call a method; a number that it returns goes to `number`. An error is passed over: 0 is no object's number. */
static PyObject *call(unsigned long long *number, const char *name, const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	PyObject *values = Py_VaBuildValue(format, arguments), *method = PyObject_GetAttrString(world.pump, name);
	va_end(arguments);
	PyObject *result = values && method ? PyObject_Call(method, values, NULL) : NULL;
	Py_XDECREF(values);
	Py_XDECREF(method);
	if (number)
		*number = result ? PyLong_AsUnsignedLongLong(result) : 0;
	if (PyErr_Occurred()) {
		CHECK(PyErr_ExceptionMatches(PyExc_MemoryError) || PyErr_ExceptionMatches(PyExc_LookupError)
			|| PyErr_ExceptionMatches(PyExc_OSError) || PyErr_ExceptionMatches(PyExc_ValueError));
		world.failed |= PyErr_ExceptionMatches(PyExc_MemoryError);
		PyErr_Clear();
	}
	return result;
}

#define DO(...) Py_XDECREF(call(NULL, __VA_ARGS__))

/* A Tls object; its keys change after so many records. NULL without TLS, and if there is no memory. */
static PyObject *new_tls(unsigned most)
{
	static const char secret[64] = "0000000000000000000000000000000000000000000000000000000000000000";
	unsigned fails = cipher_fails_at;
	cipher_fails_at = 0;
	PyObject *tls = secure ? PyObject_CallFunction((PyObject *)tls_type, "iy#y#I", 0x1301, secret, (Py_ssize_t)64, secret, (Py_ssize_t)64, most) : NULL;
	cipher_fails_at = fails;
	CHECK(!secure || tls);
	return tls;
}

static void detach(int peer)
{
	PyObject *rest = call(NULL, "detach", "(K)", world.port[peer]);
	if (rest)
		got(peer, PyBytes_AsString(rest), (size_t)PyBytes_Size(rest));
	Py_XDECREF(rest);
	if (world.attached[peer] && rest) {
		int broken = out[peer].broken;
		check_chunks(peer);
		if (broken && secure) {
			Py_CLEAR(world.seals[peer]);
			world.seals[peer] = new_tls(1 + next() % 32);
			out[peer].number = 0;
		}
	}
	world.attached[peer] = 0;
}

static void attach(int peer)
{
	PyObject *done = call(NULL, "attach", "(KiIO)", world.port[peer], PEER + peer, next() * 1024, secure ? world.seals[peer] : Py_None);
	world.attached[peer] |= done != NULL;
	Py_XDECREF(done);
}

static void start_inlet(Py_ssize_t head, Py_ssize_t tail, unsigned long long left, int after, Py_ssize_t raw_head, Py_ssize_t raw_tail)
{
	Py_XDECREF(call(&world.inlet, "inlet", "(iKKOnnKiOOnn)", STREAM, world.outlet, world.table, world.buffer, head, tail, left, after,
		secure ? world.opens : Py_None, world.raw, raw_head, raw_tail));
}

/* Take a record that the pump has left, as Python does. Returns whether the stream goes on behind it. */
static int take_other(Py_ssize_t *raw_head, Py_ssize_t raw_tail)
{
	PyObject *taken = PyObject_CallMethod(world.opens, "take", "Onn", world.raw, *raw_head, raw_tail), *content;
	int kind = 0;
	if (!taken) {
		CHECK(PyErr_ExceptionMatches(PyExc_ValueError) && (damaged || cipher_fails_at));
		PyErr_Clear();
		return 0;
	}
	CHECK(PyArg_ParseTuple(taken, "niO", raw_head, &kind, &content) && *raw_head <= raw_tail);
	CHECK(kind != APPLICATION_DATA || !PyBytes_Size(content) || cipher_fails_at);
	int empty = !PyBytes_Size(content);
	Py_DECREF(taken);
	if (kind == HANDSHAKE)
		Py_XDECREF(PyObject_CallMethod(world.opens, "update", "i", 1));
	CHECK(!PyErr_Occurred());
	return kind == HANDSHAKE || empty;
}

/* End the inlet, and begin it again from its state, as another of the same stream would. */
static void restart_inlet(int again)
{
	PyObject *state = call(NULL, "state", "(K)", world.inlet);
	Py_ssize_t head = 0, tail = 0, pos = 0, end = 0, raw_head = 0, raw_tail = 0;
	unsigned long long left = 0;
	int after = 0, other = 0;
	if (state) {
		CHECK(PyArg_ParseTuple(state, "nnnnKinnp", &head, &tail, &pos, &end, &left, &after, &raw_head, &raw_tail, &other));
		CHECK(0 <= head && head <= tail && tail <= pos && pos <= end && end <= BUFFER_BYTES);
		CHECK(0 <= raw_head && raw_head <= raw_tail && raw_tail <= RAW_BYTES);
	}
	const Inlet *in = find((Pump *)world.pump, world.inlet, INLET);
	int resumes = in && in->resume;
	DO("free", "(K)", world.inlet);
	world.inlet = 0;
	/* What was received and not decoded is Python's to decode: then this stream is over. */
	int whole = state && pos == end && tail - head < MAX_FRAME_BYTES && !(resumes && tail - head >= LENGTH_BYTES);
	Py_XDECREF(state);
	if (!whole)
		return;
	if (other)
		again = take_other(&raw_head, raw_tail);
	if (again)
		start_inlet(head, tail, left, after, raw_head, raw_tail);
}

static void restart_reader(void)
{
	DO("free", "(K)", world.reader);
	PyObject *queues = Py_BuildValue("(ii)", DEVICE_A, DEVICE_B);
	/* The device is written to at its first queue, which may be read as well. */
	Py_XDECREF(call(&world.reader, "reader", "(NKOIK)", queues, world.table, world.slab, BURST, world.port[next() & 1]));
}

/* Python sends on a socket that is lent, too, while nothing waits in the pump. So what was sent must be whole then. */
static void python_sends(int peer)
{
	static const uint8_t chunk[] = "22\r\n\x14\0\0\0\0\0\0\0\0\0\0\0\0\0\x45\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\2\r\n";
	unsigned long long waiting = 1;
	Py_XDECREF(call(&waiting, "waiting", "(K)", world.port[peer]));
	if (!world.attached[peer] || waiting || out[peer].broken || ethernet)
		return;
	PyObject *sealed = secure ? PyObject_CallMethod(world.seals[peer], "seal", "y#", chunk, (Py_ssize_t)sizeof chunk - 1) : NULL;
	if (!secure) {
		check_whole(out[peer].bytes, out[peer].bytes + out[peer].size);
		got(peer, chunk, sizeof chunk - 1);
	} else if (sealed) {
		got(peer, PyBytes_AsString(sealed), (size_t)PyBytes_Size(sealed));
	} else {
		CHECK(cipher_fails_at || PyErr_ExceptionMatches(PyExc_MemoryError));
		PyErr_Clear();
	}
	Py_XDECREF(sealed);
}

static void learn(const uint8_t *frame, size_t size)
{
	int way = way_of(frame);
	PyObject *bytes = PyBytes_FromStringAndSize((const char *)frame, (Py_ssize_t)size);
	if (way == TO_DEVICE)
		DO("learn", "(KOiK)", world.table, bytes, DEVICE, 0ull);
	else if (way == TO_NOBODY)
		DO("learn", "(KOiK)", world.table, bytes, DROP, 3ull);
	else if (way == TO_PEER)
		DO("learn", "(KOiK)", world.table, bytes, TO_PORT, world.port[address_of(frame) >> 2 & 1]);
	Py_XDECREF(bytes);
}

static void see_frames(PyObject *ranges, PyObject *memory, int of_stream)
{
	Py_buffer view;
	CHECK(!PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE));
	const uint8_t *buf = view.buf;
	Py_ssize_t before = 0;
	for (Py_ssize_t i = 0; i < PyList_Size(ranges); i++) {
		Py_ssize_t start, stop, count;
		CHECK(PyArg_ParseTuple(PyList_GetItem(ranges, i), "nnn", &start, &stop, &count));
		CHECK(before <= start && start < stop && stop <= view.len && count >= 1 && (stop - start) % count == 0);
		size_t size = (size_t)(stop - start) / (size_t)count;
		for (Py_ssize_t at = start; at < stop; at += (Py_ssize_t)size) {
			CHECK(size == HEADER_BYTES + rd16(buf + at) && size >= HEADER_BYTES + least);
			if (of_stream)
				came_out(buf + at + LENGTH_BYTES, size - LENGTH_BYTES, 0);
		}
		if (ethernet || buf[start + HEADER_BYTES] >> 4 == 4 || buf[start + HEADER_BYTES] >> 4 == 6)
			learn(buf + start, size);
		if (way_of(buf + start) == TO_PEER)
			python_sends(address_of(buf + start) >> 2 & 1);
		before = stop;
	}
	PyBuffer_Release(&view);
}

static void see_event(PyObject *event)
{
	int what;
	unsigned long long id;
	PyObject *detail;
	CHECK(PyArg_ParseTuple(event, "iKO", &what, &id, &detail));
	for (int peer = 0; peer < PEERS; peer++)
		if (id == world.port[peer] && what != WATCH) {
			out[peer].broken |= what == FAILED;
			detach(peer);
		}
	if (id == world.reader) {
		if (what == FRAMES)
			see_frames(detail, world.slab, 0);
		else
			DO("halt", "(K)", id);
	} else if (id == world.inlet) {
		if (what == FRAMES)
			see_frames(detail, world.buffer, 1);
		else
			restart_inlet(0);
	}
}

static void wait_once(void)
{
	PyObject *result = call(NULL, "wait", "(K)", (unsigned long long)(now_ns + next() * 1000000ull)), *events;
	int flags;
	if (!result)
		return;
	CHECK(PyArg_ParseTuple(result, "Oi", &events, &flags));
	for (Py_ssize_t i = 0; i < PyList_Size(events) && !world.failed; i++)
		see_event(PyList_GetItem(events, i));
	Py_DECREF(result);
}

static void step(void)
{
	unsigned op = next(), peer = op >> 4 & 1;
	switch (op & 15) {
	case 0: attach((int)peer); break;
	case 1: detach((int)peer); break;
	case 2: DO("forget", "(K)", world.table); break;
	case 3: DO("busy", "(Ki)", world.outlet, (int)peer); break;
	case 4: restart_reader(); break;
	case 5: restart_inlet(1); break;
	case 6: DO("counts", "()"); break;
	case 7: DO("verdicts", "(K)", world.table); break;
	case 8:
		detach((int)peer);
		DO("free", "(K)", world.port[peer]);
		Py_XDECREF(call(&world.port[peer], "port", "()"));
		break;
	case 9:
		DO("halt", "(K)", op & 16 ? world.reader : world.inlet);
		world.over |= !(op & 16);
		break;
	case 10:
		if (op != 0xFA) { /* seldom: little happens after it */
			wait_once();
			break;
		}
		DO("close", "()");
		world.over = 1;
		for (int fd = 0; fd < FDS; fd++)
			CHECK(!watch[fd].watched || fd == TRIO);
		break;
	case 11: python_sends((int)peer); break;
	default: wait_once();
	}
}

/* While the stream goes on, all that came of it has come out, but for what the pump was told to send elsewhere. */
static void check_complete(void)
{
	for (size_t at = seen; world.inlet && !world.over && !ref.stopped && payload_bytes - at >= 2;) {
		size_t length = rd16(payload + at);
		if (length && payload_bytes - at < HEADER_BYTES + length)
			break;
		CHECK(!length || gone[at] || way_of(payload + at) == TO_NOBODY || way_of(payload + at) == TO_PEER);
		at += length ? HEADER_BYTES + length : 2;
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	Py_InitializeEx(0);
	PyObject *module = PyInit__pump();
	CHECK(module);
	type = PyObject_GetAttrString(module, "Pump");
	/* BY_ADDRESSES of plane.py. */
	rules = Py_BuildValue("(((N)(N))((NN)(NN)))", Py_BuildValue("(iii)", HEADER_BYTES, 0xF0, 0x40), Py_BuildValue("(ii)", HEADER_BYTES + 12, 8),
		Py_BuildValue("(iii)", HEADER_BYTES, 0xF0, 0x60), Py_BuildValue("(iii)", HEADER_BYTES + IPV6_BYTES - 1, 0, 0),
		Py_BuildValue("(ii)", HEADER_BYTES + 6, 1), Py_BuildValue("(ii)", HEADER_BYTES + 8, 32));
	/* BY_MACS. */
	ethernet_rules = Py_BuildValue("((()((ii))))", HEADER_BYTES, 12);
	payload = malloc(OUT_BYTES);
	gone = calloc(OUT_BYTES, 1);
	for (int peer = 0; peer < PEERS; peer++)
		out[peer].bytes = malloc(OUT_BYTES);
	world.buffer = PyByteArray_FromStringAndSize(NULL, BUFFER_BYTES);
	world.slab = PyByteArray_FromStringAndSize(NULL, SLAB_BYTES);
	world.raw = PyByteArray_FromStringAndSize(NULL, RAW_BYTES);
	fake_crypto();
	CHECK(type);
	CHECK(rules);
	CHECK(ethernet_rules);
	CHECK(payload && gone && world.buffer && world.slab && world.raw);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 3)
		return 0;
	size_t part = rd16(data) & 0x3fff;
	ethernet = data[1] >> 7;
	secure = data[1] >> 6 & 1;
	least = ethernet ? ETHERNET_BYTES : MIN_PACKET_BYTES;
	if (part > size - 2)
		part = size - 2;
	program.at = data + 2, program.left = 0; /* nothing fails before there is a pump */
	stream.at = data + 2 + part, stream.left = size - 2 - part;
	memset(watch, 0, sizeof watch);
	memset(&ref, 0, sizeof ref);
	memset(gone, 0, payload_bytes);
	payload_bytes = seen = 0;
	now_ns = 1000000000;
	allocations = 0;
	fail_at = 0;
	for (int peer = 0; peer < PEERS; peer++) {
		out[peer].size = out[peer].number = 0;
		out[peer].broken = world.attached[peer] = 0;
	}
	world.failed = world.over = 0;
	world.reader = world.inlet = 0;
	world.pump = PyObject_CallFunction(type, "i", TRIO);
	CHECK(world.pump);
	program.left = part;
	cipher_calls = cipher_fails_at = 0;
	if (secure) {
		world.opens = new_tls(1);
		for (int peer = 0; peer < PEERS; peer++)
			world.seals[peer] = new_tls(1 + next() % 32);
		make_records();
		cipher_fails_at = next() * 16;
		allocations = 0;
	}
	fail_at = next();
	Py_XDECREF(call(&world.table, "table", "(Oi)", ethernet ? ethernet_rules : rules, ethernet));
	Py_XDECREF(call(&world.outlet, "outlet", "(i)", DEVICE_A));
	for (int peer = 0; peer < PEERS; peer++)
		Py_XDECREF(call(&world.port[peer], "port", "()"));
	start_inlet(0, 0, 0, 0, 0, 0);
	restart_reader();
	attach(0);
	attach(1);
	while (program.left && !world.failed)
		step();
	for (int n = 0; (n < 20 || ((Pump *)world.pump)->resumed) && !world.failed; n++)
		wait_once();
	if (!world.failed)
		check_complete();
	for (int peer = 0; peer < PEERS && !world.failed; peer++)
		detach(peer);
	Py_DECREF(world.pump);
	Py_CLEAR(world.opens);
	for (int peer = 0; peer < PEERS; peer++)
		Py_CLEAR(world.seals[peer]);
	return 0;
}
