/* _pump: the ordinary case of the data path below trio's tasks. `plane.py` is its only user; read that first.
 *
 *     a queue of the TUN device --read--> a burst of frames --one chunk--> a stream's socket      (Reader -> Port)
 *     a stream's socket --recv--> chunks -> frames --write--> a queue of the TUN device           (Inlet -> Outlet)
 *                                                  --one chunk--> another stream's socket         (Inlet -> Port)
 *
 * Everything else goes to Python: it is returned by `wait` as an event. Nothing here calls Python code.
 *
 * What comes from a socket or a device is untrusted. Each offset is compared with the bytes that are there before it is
 * used. Nothing is allocated for a frame, and for a burst only what a full socket leaves, up to a limit.
 *
 * Objects are named by IDs: an index into `Pump.objects` and a generation, so an ID that was freed is never valid again.
 * An object refers to others by ID, and looks them up at each use. So there are no pointers that could dangle, and no
 * order in which objects must be freed.
 *
 * Descriptors belong to Python, which calls `detach`, `close` or `free` before it closes one.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <Python.h>
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

#define ABI 2                   /* what plane.py expects */
#define LENGTH_BYTES 2          /* wire/frames.py has the layout of a frame */
#define VNET_BYTES 12
#define HEADER_BYTES (LENGTH_BYTES + VNET_BYTES)
#define MIN_PACKET_BYTES 20
#define MAX_PACKET_BYTES 65535
#define MAX_FRAME_BYTES (HEADER_BYTES + MAX_PACKET_BYTES)
#define ROOM_BYTES 16           /* in a slab: for a size line before a burst, and CR LF behind it */
#define OVERHEAD (ROOM_BYTES + MAX_FRAME_BYTES + 2)
#define MAX_READS 512           /* frames of one burst */
#define MAX_SPANS 1024          /* frames of one turn of an inlet */
#define MAX_QUEUES 64           /* of one device */
#define MAX_RULES 8
#define MAX_GUARDS 8
#define MAX_PIECES 4
#define KEY_BYTES 40
#define MAX_VERDICTS 4096       /* of one table */
#define PROBES 8
#define DROP_REASONS 8
#define MIN_BLOCK_FRAMES 8      /* wire/uniform.py */
#define WATCH_BYTES (128 * 1024)
#define WATCH_NS 50000000
#define STALLED_NS 20000000     /* datapath/sender.py, SOCKET_FULL_WAIT_S */
#define LOOK_NS 5000000
#define EVENTS 64               /* of one epoll_wait; the kernel hands out the rest in turn */

/* linux/virtio_net.h; wire/vnet.py says what is checked, and why. */
#define NEEDS_CSUM 1
#define DATA_VALID 2
#define GSO_TCPV4 1
#define GSO_ECN 0x80
#define GSO_BY_FRAGS 0xffff
#define MIN_GSO_BYTES 8
#define MAX_SEGMENTS 2048
#define MAX_CSUM_START 0x7fff
#define TCP 6
#define GSO_TCPV6 4
#define IPV6_BYTES 40

typedef enum { TABLE = 1, PORT, OUTLET, READER, INLET } Kind;
/* Where a frame goes: to Python, to nobody (with a reason), into the device, or to a port. */
typedef enum { ASK, DROP, DEVICE, TO_PORT } Way;
/* The events for Python, and the flags of `wait`. */
enum { BLOCKED = 1, FAILED, WATCH, FRAMES, UNUSUAL, ENDED };
enum { TRIO_READY = 1, EXPIRED = 2, SHORT = 4 };
#define NO_MEMORY 4 /* a reason for drops: plane.py, _DROPS */

static int hex(unsigned c)
{
	return c >= '0' && c <= '9' ? (int)c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (int)(c | 32) - 'a' + 10 : -1;
}

static unsigned rd16(const uint8_t *at) { return (unsigned)at[0] | (unsigned)at[1] << 8; }

#include "_mask.c"
#include "_tls.c"

typedef struct { Kind kind; uint64_t id; int dirty; } Object;

typedef struct { uint16_t at; uint8_t mask, value; } Guard;
typedef struct { uint16_t at, size; } Piece;
typedef struct { int guards, pieces; Guard guard[MAX_GUARDS]; Piece piece[MAX_PIECES]; } Rule;
typedef struct { uint8_t used, way, rule, key[KEY_BYTES]; uint64_t target, hits, used_ns; } Verdict;
typedef struct {
	Object object;
	Rule rule[MAX_RULES];
	int rules;
	Verdict *verdicts;
	size_t size, count; /* size: a power of two */
} Table;

/* The sending half of a session. Attached: a stream's socket takes frames. */
typedef struct {
	Object object;
	int sock; /* -1: not attached; Python sends, or nobody */
	int failed; /* an errno; nothing more is sent */
	int full; /* frames went to Python, and no later ones may overtake them */
	int told; /* Python was told to detach it, and has not yet */
	int polled; /* the epoll has its socket */
	uint8_t *rest; /* what the socket has not taken: rest[sent..size), in `own`, or lent by a reader */
	size_t sent, size;
	uint8_t *own;
	size_t own_bytes, limit; /* limit: how much may wait in `own` behind the rest of a burst */
	uint64_t lender, blocked_ns, watched_ns;
	size_t unwatched;
	uint64_t packets, bytes;
	Tls *tls; /* then the rest is sealed, and always in `own` */
} Port;

/* Whether the kernel has taken such a super-packet. Until then: how many it is not offered after a refusal; how many of
 * these are left. */
typedef struct { int known, skips, left; } Gso;
/* busy: Python has a queue in front of the device. gso: of UDP and of TCP */
typedef struct { Object object; int fd, busy; Gso gso[2]; } Outlet;

typedef struct {
	Object object;
	int fd[MAX_QUEUES], queues;
	uint64_t table, sole;
	int held; /* the sole port has borrowed the slab; nothing is read */
	uint64_t shown; /* the turn in which Python got frames of the slab; nothing more is read in it */
	int told;
	uint8_t *slab;
	size_t burst;
	uint64_t drops[DROP_REASONS];
	Py_buffer view;
} Reader;

/* The receiving half of a stream: the state of wire.frames.FrameReader and of wire.body.ChunkedBody. */
typedef struct {
	Object object;
	int sock, told, resume, after_payload;
	uint64_t shown; /* the turn in which Python got frames of the buffer; nothing more is received in it */
	uint64_t table, outlet;
	uint8_t *buf;
	size_t cap, head, tail, pos, end;
	uint64_t left;
	uint64_t packets, bytes, arrivals, drops[DROP_REASONS];
	Py_buffer view;
	Tls *tls; /* then raw[raw_head..raw_tail) are the records that are not opened yet */
	uint8_t *raw;
	size_t raw_cap, raw_head, raw_tail;
	int other; /* the next record is for Python */
	Py_buffer raw_view;
} Inlet;

typedef struct { size_t start, stop; } Span;

typedef struct {
	PyObject_HEAD
	int epoll;
	Object **objects;
	uint32_t *generation;
	uint32_t size, lowest_free;
	uint64_t seed, now_ns, turn; /* turn: the number of this `wait` */
	uint32_t blocked, resumed; /* ports that wait for their socket; inlets with more to decode */
	uint64_t look_ns; /* when to look for ports that have waited for too long */
	uint64_t dirty[256]; /* objects that have counted something */
	uint32_t dirty_count;
	int all_dirty;
	int lost_event; /* in this turn: there was no memory for one */
} Pump;

#include "_gro.c"

static uint64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- objects */

static void *find(const Pump *p, uint64_t id, Kind kind)
{
	uint32_t index = (uint32_t)id;
	if (index >= p->size || !p->objects[index] || p->objects[index]->id != id || p->objects[index]->kind != kind)
		return NULL;
	return p->objects[index];
}

static Object *any(const Pump *p, uint64_t id)
{
	if ((uint32_t)id < p->size && p->objects[(uint32_t)id] && p->objects[(uint32_t)id]->id == id)
		return p->objects[(uint32_t)id];
	PyErr_SetString(PyExc_LookupError, "no such object");
	return NULL;
}

static void *found(const Pump *p, uint64_t id, Kind kind)
{
	void *object = find(p, id, kind);
	if (!object)
		PyErr_SetString(PyExc_LookupError, "no such object");
	return object;
}

static void *create(Pump *p, Kind kind, size_t bytes)
{
	uint32_t index = p->lowest_free;
	while (index < p->size && p->objects[index])
		index++;
	if (index == p->size) {
		uint32_t size = p->size ? 2 * p->size : 16;
		Object **objects = size > 1u << 24 ? NULL : realloc(p->objects, size * sizeof *objects);
		if (objects)
			p->objects = objects;
		uint32_t *generation = objects ? realloc(p->generation, size * sizeof *generation) : NULL;
		if (!generation)
			return PyErr_NoMemory();
		p->generation = generation;
		for (uint32_t i = p->size; i < size; i++) {
			p->objects[i] = NULL;
			p->generation[i] = 0;
		}
		p->size = size;
	}
	Object *object = calloc(1, bytes);
	if (!object)
		return PyErr_NoMemory();
	object->kind = kind;
	object->id = (uint64_t)++p->generation[index] << 32 | index;
	p->objects[index] = object;
	p->lowest_free = index + 1;
	return object;
}

static void touch(Pump *p, Object *object)
{
	if (object->dirty)
		return;
	object->dirty = 1;
	if (p->dirty_count < sizeof p->dirty / sizeof *p->dirty)
		p->dirty[p->dirty_count++] = object->id;
	else
		p->all_dirty = 1;
}

/* An index has 24 bits, so an event of the epoll has room for the number of a reader's queue. */
#define QUEUE_SHIFT 24
#define QUEUE_MASK (0xffull << QUEUE_SHIFT)

static int poll_fd(const Pump *p, int op, int fd, uint32_t events, uint64_t tag)
{
	struct epoll_event event = { .events = events, .data.u64 = tag };
	return epoll_ctl(p->epoll, op, fd, &event);
}

/* Returns -1 if a queue cannot be added; then none of them is. */
static int poll_queues(const Pump *p, const Reader *r, int op, uint32_t events)
{
	for (int i = 0; i < r->queues; i++)
		if (poll_fd(p, op, r->fd[i], events, r->object.id | (uint64_t)i << QUEUE_SHIFT) && op == EPOLL_CTL_ADD) {
			int error = errno;
			while (i-- > 0)
				poll_fd(p, EPOLL_CTL_DEL, r->fd[i], 0, 0);
			errno = error;
			return -1;
		}
	return 0;
}

/* ---- verdicts */

/* The key of a frame by the first rule whose guards match: `key` is filled with zeros. Returns the rule, or -1. */
static int key_of(const Table *t, const uint8_t *frame, size_t bytes, uint8_t key[KEY_BYTES])
{
	for (int r = 0; r < t->rules; r++) {
		const Rule *rule = t->rule + r;
		int i;
		for (i = 0; i < rule->guards; i++) {
			const Guard *g = rule->guard + i;
			if (g->at >= bytes || (frame[g->at] & g->mask) != g->value)
				break;
		}
		if (i < rule->guards)
			continue;
		size_t used = 0;
		memset(key, 0, KEY_BYTES);
		for (i = 0; i < rule->pieces; i++) {
			const Piece *piece = rule->piece + i;
			if ((size_t)piece->at + piece->size > bytes)
				break;
			memcpy(key + used, frame + piece->at, piece->size);
			used += piece->size;
		}
		if (i == rule->pieces)
			return r;
	}
	return -1;
}

static size_t hash(const Pump *p, int rule, const uint8_t key[KEY_BYTES])
{
	uint64_t h = p->seed ^ (uint64_t)rule, word; /* the seed: keys come from strangers */
	for (int i = 0; i < KEY_BYTES; i += 8) {
		memcpy(&word, key + i, 8);
		h = (h ^ word) * 0x9e3779b97f4a7c15u;
		h ^= h >> 29;
	}
	return (size_t)(h ^ h >> 32);
}

static Verdict *slot_of(const Pump *p, const Table *t, int rule, const uint8_t key[KEY_BYTES], int for_new)
{
	size_t h = hash(p, rule, key);
	for (size_t i = 0; i < PROBES && t->size; i++) {
		Verdict *v = t->verdicts + ((h + i) & (t->size - 1));
		if (!v->used)
			return for_new ? v : NULL;
		if (v->rule == rule && !memcmp(v->key, key, KEY_BYTES))
			return v;
	}
	return for_new && t->size ? t->verdicts + (h & (t->size - 1)) : NULL;
}

static Verdict *judge(const Pump *p, const Table *t, const uint8_t *frame, size_t bytes)
{
	uint8_t key[KEY_BYTES];
	int rule = key_of(t, frame, bytes, key);
	Verdict *v = rule < 0 ? NULL : slot_of(p, t, rule, key, 0);
	if (v) {
		v->hits++;
		v->used_ns = p->now_ns;
	}
	return v;
}

static void forget(Table *t)
{
	free(t->verdicts);
	t->verdicts = NULL;
	t->size = t->count = 0;
}

static int grow(const Pump *p, Table *t)
{
	Table larger = *t;
	larger.size = t->size ? 2 * t->size : 16;
	larger.verdicts = calloc(larger.size, sizeof *larger.verdicts);
	if (!larger.verdicts)
		return -1;
	for (size_t i = 0; i < t->size; i++)
		if (t->verdicts[i].used)
			*slot_of(p, &larger, t->verdicts[i].rule, t->verdicts[i].key, 1) = t->verdicts[i];
	free(t->verdicts);
	t->verdicts = larger.verdicts;
	t->size = larger.size;
	return 0;
}

/* Whether the headers of an IPv6 packet lead to TCP at `tcp_at`, within which they lie: wire.vnet._is_tcp_at. */
static int is_tcp_at(const uint8_t *packet, unsigned tcp_at)
{
	unsigned at = IPV6_BYTES, header = packet[6];
	while (at < tcp_at && (header == 0 || header == 43 || header == 60)) {
		header = packet[at];
		at += 8 * (packet[at + 1] + 1u);
	}
	return at == tcp_at && header == TCP;
}

/* Whether a peer's kernel accepts the vnet header of this frame: wire.vnet.validate_vnet_header. */
static int vnet_is_valid(const uint8_t *frame, size_t bytes)
{
	if (bytes < HEADER_BYTES + MIN_PACKET_BYTES)
		return 0;
	unsigned length = rd16(frame), flags = frame[2], gso = frame[3], hdr_len = rd16(frame + 4), gso_size = rd16(frame + 6);
	int ipv6 = frame[HEADER_BYTES] >> 4 == 6;
	unsigned start = rd16(frame + 8), offset = rd16(frame + 10), ip_header = ipv6 ? IPV6_BYTES : (frame[HEADER_BYTES] & 15u) * 4;
	if (flags & ~(unsigned)(NEEDS_CSUM | DATA_VALID) || hdr_len > length)
		return 0;
	if (flags & NEEDS_CSUM && !(ip_header >= 20 && ip_header <= start && start <= MAX_CSUM_START && start + offset + 2 <= length))
		return 0;
	if (!gso)
		return 1;
	if ((gso & ~(unsigned)GSO_ECN) != (ipv6 ? GSO_TCPV6 : GSO_TCPV4) || gso_size >= GSO_BY_FRAGS || gso_size < MIN_GSO_BYTES
		|| length > gso_size * MAX_SEGMENTS || !(flags & NEEDS_CSUM) || offset != 16 || length < start + 20)
		return 0;
	if (ipv6)
		return bytes >= HEADER_BYTES + start + 20 && is_tcp_at(frame + HEADER_BYTES, start);
	return frame[HEADER_BYTES + 9] == TCP && start == ip_header;
}

/* ---- a stream that takes frames */

static void unblock(Pump *p, Port *port)
{
	if (!port->blocked_ns)
		return;
	port->blocked_ns = 0;
	p->blocked--;
	Reader *reader = find(p, port->lender, READER);
	port->lender = 0;
	if (reader && reader->held) {
		reader->held = 0;
		if (!reader->told)
			poll_queues(p, reader, EPOLL_CTL_MOD, EPOLLIN);
	}
}

static void watch_socket(const Pump *p, Port *port, uint32_t events)
{
	if (!poll_fd(p, port->polled ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, port->sock, events, port->object.id))
		port->polled = 1;
}

static void block(Pump *p, Port *port)
{
	if (port->blocked_ns)
		return;
	port->blocked_ns = p->now_ns;
	p->blocked++;
	watch_socket(p, port, EPOLLOUT);
}

/* Send what is left over. Returns whether nothing is. */
static int flush(Pump *p, Port *port)
{
	while (port->sent < port->size) {
		ssize_t n = send(port->sock, port->rest + port->sent, port->size - port->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				port->failed = errno;
			return 0;
		}
		port->sent += (size_t)n;
	}
	port->sent = port->size = 0;
	port->rest = NULL;
	if (port->blocked_ns) {
		unblock(p, port);
		watch_socket(p, port, 0);
	}
	return 1;
}

/* Put bytes behind the rest in the port's own memory. Returns whether there was room. */
static int keep(Port *port, const uint8_t *bytes, size_t size)
{
	size_t waiting = port->size - port->sent;
	if (!(waiting + size))
		return 1;
	if (waiting + size > port->own_bytes) {
		size_t room = waiting + size > port->limit ? waiting + size : port->limit;
		uint8_t *own = malloc(room);
		if (!own)
			return 0;
		if (waiting)
			memcpy(own, port->rest + port->sent, waiting);
		free(port->own);
		port->own = own;
		port->own_bytes = room;
	} else if (waiting && port->rest + port->sent != port->own) {
		memmove(port->own, port->rest + port->sent, waiting);
	}
	memcpy(port->own + waiting, bytes, size);
	port->rest = port->own;
	port->sent = 0;
	port->size = waiting + size;
	return 1;
}

static int takes(const Port *port)
{
	return port && port->sock >= 0 && !port->failed && !port->full && !port->told;
}

/* Frames for this port go to Python from now on, until it has taken the port back. */
static int refuse(Pump *p, Port *port)
{
	port->full = 1;
	touch(p, &port->object); /* so that `report` sees it */
	return 0;
}

/* `give` for a port with TLS: seal the chunk behind what is there, and send. A full socket's reader is held here, too. */
static int give_sealed(Pump *p, Port *port, const Part *part, size_t bytes, Reader *lender)
{
	size_t waiting = port->size - port->sent, room = waiting + sealed_bytes(bytes);
	if (waiting && room > port->limit)
		return refuse(p, port);
	if (room > port->own_bytes) {
		uint8_t *own = malloc(room);
		if (!own)
			return refuse(p, port);
		if (waiting)
			memcpy(own, port->rest + port->sent, waiting);
		free(port->own);
		port->own = own;
		port->own_bytes = room;
	} else if (waiting && port->sent) {
		memmove(port->own, port->own + port->sent, waiting);
	}
	size_t sealed = seal(port->tls, APPLICATION_DATA, part, 3, port->own + waiting);
	port->rest = port->own;
	port->sent = 0;
	port->size = waiting + sealed;
	if (!sealed) {
		port->failed = EPROTO;
	} else if (!waiting && !flush(p, port) && !port->failed) {
		if (lender) {
			port->lender = lender->object.id;
			lender->held = 1;
			poll_queues(p, lender, EPOLL_CTL_MOD, 0);
		}
		block(p, port);
	}
	return 1;
}

/* Send frames as one chunk. Returns whether the port took them; else they are Python's to send.
 *
 * `lender`: the reader in whose slab the frames are, with room for the size line before them and for CR LF behind them.
 * What the socket does not take then stays there, and nothing is read until it has left. */
static int give(Pump *p, Port *port, uint8_t *frames, size_t bytes, uint64_t packets, Reader *lender)
{
	char line[20];
	int n = snprintf(line, sizeof line, "%zx\r\n", bytes);
	size_t head = (size_t)n, total = head + bytes + 2;
	if (!takes(port))
		return 0;
	if (port->tls) {
		const Part part[3] = { { (uint8_t *)line, head }, { frames, bytes }, { (const uint8_t *)"\r\n", 2 } };
		if (!give_sealed(p, port, part, total, lender))
			return 0;
	} else if (port->size) { /* full: a small backlog is cheaper than a change of hands */
		size_t before = port->size - port->sent;
		if (before + total > port->limit || !keep(port, (uint8_t *)line, head))
			return refuse(p, port);
		if (!keep(port, frames, bytes) || !keep(port, (const uint8_t *)"\r\n", 2)) {
			port->size = before; /* `sent` is 0 after the first */
			return refuse(p, port);
		}
	} else {
		ssize_t sent;
		if (lender) {
			memcpy(frames - head, line, head);
			memcpy(frames + bytes, "\r\n", 2);
			do
				sent = send(port->sock, frames - head, total, MSG_DONTWAIT | MSG_NOSIGNAL);
			while (sent < 0 && errno == EINTR);
		} else {
			struct iovec part[3] = { { line, head }, { frames, bytes }, { (char *)"\r\n", 2 } };
			struct msghdr message = { .msg_iov = part, .msg_iovlen = 3 };
			do
				sent = sendmsg(port->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
			while (sent < 0 && errno == EINTR);
		}
		if (sent < 0 && errno != EAGAIN)
			port->failed = errno; /* the frames are lost with the stream, as in Sender._commit */
		else if ((size_t)(sent < 0 ? 0 : sent) < total) {
			size_t at = sent < 0 ? 0 : (size_t)sent;
			if (lender) {
				port->rest = frames - head;
				port->sent = at;
				port->size = total;
				port->lender = lender->object.id;
				lender->held = 1;
				poll_queues(p, lender, EPOLL_CTL_MOD, 0);
			} else {
				int kept = at >= head || keep(port, (uint8_t *)line + at, head - at);
				size_t from = at < head ? 0 : at - head < bytes ? at - head : bytes;
				kept = kept && (from == bytes || keep(port, frames + from, bytes - from));
				size_t end = at < head + bytes ? 0 : at - head - bytes;
				if (!kept || !keep(port, (const uint8_t *)"\r\n" + end, 2 - end)) {
					if (!at) { /* nothing has left: Python may still send all of it */
						port->sent = port->size = 0;
						port->rest = NULL;
						return refuse(p, port);
					}
					port->failed = ENOMEM;
				}
			}
			block(p, port);
		}
	}
	touch(p, &port->object);
	port->packets += packets;
	port->bytes += bytes - HEADER_BYTES * packets;
	port->unwatched += bytes;
	return 1;
}

/* ---- events */

/* Note that there was no memory for an event: `wait` tells it with SHORT. Returns -1 if it was another exception. */
static int lose_event(Pump *p)
{
	if (!PyErr_ExceptionMatches(PyExc_MemoryError))
		return -1;
	PyErr_Clear();
	p->lost_event = 1;
	return 0;
}

/* Returns -1 with an exception set, never for want of memory: then the event is lost, and `lost_event` is set. */
static int add_event(Pump *p, PyObject *events, int what, uint64_t id, PyObject *detail)
{
	PyObject *event = Py_BuildValue("(iKN)", what, (unsigned long long)id, detail ? detail : Py_NewRef(Py_None));
	int result = event ? PyList_Append(events, event) : -1;
	Py_XDECREF(event);
	return result ? lose_event(p) : 0;
}

/* Tell Python what became of a port: at most one event of each kind until it has reacted. */
static int report(Pump *p, Port *port, PyObject *events)
{
	if (port->told || port->sock < 0)
		return 0;
	if (port->failed) {
		port->told = 1;
		return add_event(p, events, FAILED, port->object.id, PyLong_FromLong(port->failed));
	}
	if (port->full) {
		port->told = 1;
		return add_event(p, events, BLOCKED, port->object.id, NULL);
	}
	if (port->unwatched > WATCH_BYTES) {
		port->unwatched = 0;
		if (p->now_ns - port->watched_ns > WATCH_NS) {
			port->watched_ns = p->now_ns;
			return add_event(p, events, WATCH, port->object.id, NULL);
		}
	}
	return 0;
}

/* Whether two adjacent frames of one size belong to one block: wire.uniform, _BLOCK_COLUMNS and are_uniform_ipv6. */
static int alike(const uint8_t *a, const uint8_t *b)
{
	if (a[HEADER_BYTES] >> 4 == 6)
		return !memcmp(a, b, HEADER_BYTES + IPV6_BYTES);
	return !memcmp(a, b, HEADER_BYTES + 2) && !memcmp(a + HEADER_BYTES + 8, b + HEADER_BYTES + 8, 2)
		&& !memcmp(a + HEADER_BYTES + 12, b + HEADER_BYTES + 12, 8);
}

/* The spans as a list of wire.frames.FrameRange. */
static PyObject *ranges(const uint8_t *buf, const Span *span, size_t spans)
{
	PyObject *list = PyList_New(0);
	for (size_t i = 0, j; list && i < spans; i = j) {
		const uint8_t *first = buf + span[i].start;
		size_t size = span[i].stop - span[i].start;
		j = i + 1;
		unsigned version = first[HEADER_BYTES] >> 4;
		if ((version == 4 || (version == 6 && size >= HEADER_BYTES + IPV6_BYTES)) && !first[3])
			while (j < spans && span[j].stop - span[j].start == size && span[j].start == span[j - 1].stop
				&& alike(first, buf + span[j].start))
				j++;
		if (j - i < MIN_BLOCK_FRAMES)
			j = i + 1;
		PyObject *range = Py_BuildValue("(nnn)", (Py_ssize_t)span[i].start, (Py_ssize_t)span[j - 1].stop, (Py_ssize_t)(j - i));
		if (!range || PyList_Append(list, range))
			Py_CLEAR(list);
		Py_XDECREF(range);
	}
	return list;
}

/* Show Python these frames. If there is no memory for that, they are dropped. Returns -1 with an exception set. */
static int show(Pump *p, PyObject *events, Object *object, const uint8_t *buf, const Span *span, size_t spans, uint64_t *drops)
{
	int lost = p->lost_event, result;
	PyObject *list = ranges(buf, span, spans);
	p->lost_event = 0;
	result = list ? add_event(p, events, FRAMES, object->id, list) : lose_event(p);
	if (p->lost_event) {
		drops[NO_MEMORY] += spans;
		touch(p, object);
	}
	p->lost_event |= lost;
	return result;
}

/* ---- from the device */

/* Give a run of frames to a port. What it does not take is added to `back`. Returns the number of spans there. */
static size_t give_run(Pump *p, Port *to, Reader *r, size_t run, size_t end, uint64_t packets, Span *back, size_t backs, Reader *lender)
{
	if (!give(p, to, r->slab + run, end - run, packets, lender))
		while (run < end) {
			size_t stop = run + HEADER_BYTES + rd16(r->slab + run);
			back[backs++] = (Span){ run, stop };
			run = stop;
		}
	return backs;
}

/* Read one burst, and pass it on. Returns -1 with an exception set. */
static int read_queue(Pump *p, Reader *r, int fd, PyObject *events)
{
	Table *table = find(p, r->table, TABLE);
	Span back[MAX_READS];
	size_t backs = 0, at = ROOM_BYTES, run = at;
	Port *to = NULL, *next = NULL;
	uint64_t packets = 0;
	int why = 0, result = 0;
	for (int n = 0; n < MAX_READS && at < ROOM_BYTES + r->burst; n++) {
		uint8_t *frame = r->slab + at;
		ssize_t k = read(fd, frame + LENGTH_BYTES, VNET_BYTES + MAX_PACKET_BYTES);
		if (k < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				why = errno;
			break;
		}
		if (k < VNET_BYTES + MIN_PACKET_BYTES || (k < VNET_BYTES + IPV6_BYTES && frame[HEADER_BYTES] >> 4 == 6))
			continue; /* not an IP packet; a frame cannot have such a length */
		size_t size = LENGTH_BYTES + (size_t)k;
		unsigned length = (unsigned)k - VNET_BYTES;
		frame[0] = length & 255;
		frame[1] = (uint8_t)(length >> 8);
		frame[12] = frame[13] = 0; /* num_buffers: kernels before 6.15 do not write it */
		Verdict *v = table ? judge(p, table, frame, size) : NULL;
		if (v && v->way == DROP) {
			r->drops[v->target]++;
			touch(p, &r->object);
			continue; /* the next frame takes its place */
		}
		next = v && v->way == TO_PORT ? find(p, v->target, PORT) : NULL;
		if (next && !takes(next))
			next = NULL;
		if (next != to) {
			if (to)
				backs = give_run(p, to, r, run, at, packets, back, backs, NULL);
			to = next;
			run = at;
			packets = 0;
		}
		if (to)
			packets++;
		else
			back[backs++] = (Span){ at, at + size };
		at += size;
	}
	if (to)
		backs = give_run(p, to, r, run, at, packets, back, backs, run == ROOM_BYTES && !backs && r->sole == to->object.id ? r : NULL);
	if (backs) {
		result = show(p, events, &r->object, r->slab, back, backs, r->drops);
		r->shown = p->turn;
	}
	if (why && !result) {
		r->told = 1;
		poll_queues(p, r, EPOLL_CTL_DEL, 0);
		result = add_event(p, events, FAILED, r->object.id, PyLong_FromLong(why));
	}
	return result;
}

/* ---- from a stream */

/* The size line at `pos`, and the end of the payload before it. Returns 1: parsed; 0: not whole yet; -1: for Python. */
static int size_line(Inlet *in)
{
	const uint8_t *b = in->buf;
	size_t q = in->pos;
	uint64_t size = 0;
	int digits = 0, v;
	if (in->after_payload) {
		if (b[q] != '\r')
			return -1;
		if (in->end - q < 2)
			return 0;
		if (b[q + 1] != '\n')
			return -1;
		q += 2;
	}
	for (; q < in->end && (v = hex(b[q])) >= 0; q++, digits++) {
		if (digits == 15)
			return -1;
		size = size << 4 | (unsigned)v;
	}
	if (q == in->end)
		return 0;
	if (!size || b[q] != '\r') /* also the last chunk, extensions, and what is malformed */
		return -1;
	if (in->end - q < 2)
		return 0;
	if (b[q + 1] != '\n')
		return -1;
	in->left = size;
	in->after_payload = 1;
	in->pos = q + 2;
	return 1;
}

/* Find the next whole frames. Returns their number; sets `unusual` if what follows them is for Python. */
static size_t find_frames(Inlet *in, Span *span, int *unusual)
{
	uint8_t *b = in->buf;
	size_t spans = 0, work = 0;
	while (spans < MAX_SPANS && work++ < 4 * MAX_SPANS) {
		if (in->tail - in->head >= LENGTH_BYTES) {
			unsigned length = rd16(b + in->head);
			if (length >= MIN_PACKET_BYTES) {
				if (in->tail - in->head >= HEADER_BYTES + length) {
					span[spans++] = (Span){ in->head, in->head + HEADER_BYTES + length };
					in->head += HEADER_BYTES + length;
					continue;
				}
			} else if (length) {
				*unusual = 1;
				return spans;
			} else { /* a ping: only proves that the peer lives */
				in->head += LENGTH_BYTES;
				continue;
			}
		}
		if (in->pos == in->end)
			return spans;
		if (!in->left) {
			int parsed = size_line(in);
			if (parsed < 0)
				*unusual = 1;
			if (parsed <= 0)
				return spans;
			continue;
		}
		size_t start = in->pos, more = in->end - start;
		if (more > in->left)
			more = (size_t)in->left;
		in->left -= more;
		in->pos += more;
		size_t have = in->tail - in->head;
		if (start != in->tail) { /* chunk framing lies between: move the shorter part */
			if (have <= more) {
				memmove(b + start - have, b + in->head, have);
				in->head = start - have;
			} else {
				memmove(b + in->tail, b + start, more);
				start = in->tail;
			}
		}
		in->tail = start + more;
	}
	in->resume = 1;
	return spans;
}

/* Pass frames on. Those that are for Python are moved to the front of `span`, in order. Returns their number. */
static size_t pass_on(Pump *p, Inlet *in, Span *span, size_t spans)
{
	Table *table = find(p, in->table, TABLE);
	Outlet *outlet = find(p, in->outlet, OUTLET);
	Port *to = NULL;
	size_t run = 0, i, back = 0; /* run: the first frame of the run for `to` */
	uint8_t waits[MAX_SPANS]; /* for Python */
	int full = 0;
	Runs runs;
	runs.open = 0;
	runs.seed = p->seed;
	for (i = 0; i < spans; i++) {
		const uint8_t *frame = in->buf + span[i].start;
		size_t size = span[i].stop - span[i].start;
		unsigned length = rd16(frame), gso_size = rd16(frame + 6);
		Verdict *v = table ? judge(p, table, frame, size) : NULL;
		Port *next = v && v->way == TO_PORT ? find(p, v->target, PORT) : NULL;
		if (to && (next != to || span[i - 1].stop != span[i].start)) {
			if (!give(p, to, in->buf + span[run].start, span[i - 1].stop - span[run].start, i - run, NULL)) {
				i = run;
				to = NULL;
				break;
			}
			to = NULL;
		}
		if (!v || v->way == ASK)
			break;
		if (v->way == DROP) {
			in->drops[v->target]++;
		} else if (v->way == DEVICE) {
			if (!outlet || outlet->busy || (frame[3] && (gso_size < MIN_GSO_BYTES || length > gso_size * MAX_SEGMENTS)))
				break;
			if ((full = !write_or_join(outlet, &runs, in->buf, span, (unsigned)i)))
				break;
		} else {
			if (!takes(next) || !vnet_is_valid(frame, size))
				break;
			if (!to)
				run = i;
			to = next;
		}
	}
	if (to && !give(p, to, in->buf + span[run].start, span[i - 1].stop - span[run].start, i - run, NULL))
		i = run;
	memset(waits, 0, spans);
	memset(waits + i, 1, spans - i);
	if (runs.open && (full || !close_runs(outlet, &runs, in->buf, span)))
		for (; runs.open; runs.open &= runs.open - 1) {
			const Run *r = runs.run + __builtin_ctzll(runs.open);
			for (unsigned n = 0, at = r->first; n < r->count; n++, at = runs.next[at])
				waits[at] = 1;
		}
	for (size_t n = 0; n < spans; n++)
		if (waits[n]) {
			span[back++] = span[n];
		} else {
			in->packets++;
			in->bytes += span[n].stop - span[n].start - HEADER_BYTES;
		}
	return back;
}

/* Make room for what comes next. */
static void make_room(Inlet *in)
{
	size_t have = in->tail - in->head, raw = in->end - in->pos;
	if (!have && !raw) {
		in->head = in->tail = in->pos = in->end = 0;
	} else if (in->cap - in->end < MAX_FRAME_BYTES) {
		memmove(in->buf, in->buf + in->head, have);
		memmove(in->buf + have, in->buf + in->pos, raw);
		in->head = 0;
		in->tail = in->pos = have;
		in->end = have + raw;
	}
	if (in->raw_head == in->raw_tail) {
		in->raw_head = in->raw_tail = 0;
	} else if (in->raw_cap - in->raw_tail < MAX_RECORD_BYTES) {
		memmove(in->raw, in->raw + in->raw_head, in->raw_tail - in->raw_head);
		in->raw_tail -= in->raw_head;
		in->raw_head = 0;
	}
}

/* One receive, or what the one before has left. Returns -1 with an exception set. */
static int receive(Pump *p, Inlet *in, PyObject *events)
{
	Span span[MAX_SPANS];
	int unusual = 0, what = 0, error = 0, again = in->resume;
	touch(p, &in->object);
	p->resumed -= (uint32_t)again;
	in->resume = 0;
	if (!again || in->tls)
		make_room(in);
	if (!again) {
		uint8_t *to = in->tls ? in->raw + in->raw_tail : in->buf + in->end;
		ssize_t n = recv(in->sock, to, in->tls ? in->raw_cap - in->raw_tail : in->cap - in->end, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			return 0;
		if (n <= 0) {
			what = n ? FAILED : ENDED;
			error = n ? errno : 0;
		} else {
			in->arrivals++;
			*(in->tls ? &in->raw_tail : &in->end) += (size_t)n;
		}
	}
	if (!what) {
		int more = 0;
		if (in->tls) {
			size_t used = 0;
			int stopped = open_records(in->tls, in->raw, &in->raw_head, in->raw_tail, in->buf + in->end, in->cap - in->end, &used);
			in->end += used;
			in->other = stopped == OTHER;
			more = stopped == NO_ROOM;
		}
		size_t spans = find_frames(in, span, &unusual), back = pass_on(p, in, span, spans);
		if (back) {
			if (show(p, events, &in->object, in->buf, span, back, in->drops))
				return -1;
			in->shown = p->turn;
		}
		if (unusual || (in->other && !in->resume))
			what = UNUSUAL;
		in->resume |= more;
	}
	if (what) {
		in->resume = 0;
		in->told = 1;
		poll_fd(p, EPOLL_CTL_DEL, in->sock, 0, 0);
		return add_event(p, events, what, in->object.id, PyLong_FromLong(error));
	}
	if (in->resume)
		p->resumed++;
	return 0;
}

/* ---- the wait */

static int each(Pump *p, PyObject *events, int (*act)(Pump *, Object *, PyObject *))
{
	for (uint32_t i = 0; i < p->size; i++)
		if (p->objects[i] && act(p, p->objects[i], events))
			return -1;
	return 0;
}

static int resume_one(Pump *p, Object *object, PyObject *events)
{
	return object->kind == INLET && ((Inlet *)object)->resume ? receive(p, (Inlet *)object, events) : 0;
}

static int report_one(Pump *p, Object *object, PyObject *events)
{
	return object->kind == PORT ? report(p, (Port *)object, events) : 0;
}

static int report_stalled(Pump *p, Object *object, PyObject *events)
{
	Port *port = (Port *)object;
	if (object->kind != PORT || port->told || !port->blocked_ns || p->now_ns - port->blocked_ns < STALLED_NS)
		return 0;
	if (port->failed)
		return 0; /* `report` tells that */
	port->told = 1;
	return add_event(p, events, BLOCKED, object->id, NULL);
}

static int report_all(Pump *p, PyObject *events)
{
	if (p->all_dirty)
		return each(p, events, report_one);
	for (uint32_t i = 0; i < p->dirty_count; i++) {
		Port *port = find(p, p->dirty[i], PORT);
		if (port && report(p, port, events))
			return -1;
	}
	return 0;
}

static int handle(Pump *p, const struct epoll_event *event, PyObject *events)
{
	uint64_t id = event->data.u64 & ~QUEUE_MASK;
	Reader *reader = find(p, id, READER);
	Inlet *inlet = find(p, id, INLET);
	Port *port = find(p, id, PORT);
	if (reader && !reader->held && reader->shown != p->turn && !reader->told)
		return read_queue(p, reader, reader->fd[(event->data.u64 & QUEUE_MASK) >> QUEUE_SHIFT], events);
	if (inlet && !inlet->told && !inlet->resume && inlet->shown != p->turn)
		return receive(p, inlet, events);
	if (port && port->sock >= 0) {
		if (port->size) {
			flush(p, port);
			touch(p, &port->object);
		} else if (event->events & (EPOLLERR | EPOLLHUP)) {
			/* Nothing is to be sent, so this is the business of whoever receives. */
			poll_fd(p, EPOLL_CTL_DEL, port->sock, 0, 0);
			port->polled = 0;
		}
	}
	return 0;
}

PyDoc_STRVAR(wait_doc, "wait(deadline_ns) -> (events, flags)\n\nMove frames until something is for Python, trio's epoll is\n"
	"ready, or the deadline (CLOCK_MONOTONIC) has passed. Releases the GIL while it waits. With SHORT, there was no memory for\n"
	"some events, and any object may be one that waits for Python: all loans must end. Raises OSError; MemoryError only before it\n"
	"has done anything.");

static PyObject *Pump_wait(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	unsigned long long deadline;
	int flags = 0;
	if (!PyArg_ParseTuple(args, "K", &deadline))
		return NULL;
	PyObject *events = PyList_New(0), *result = PyTuple_New(2);
	if (!events || !result)
		goto failed;
	p->lost_event = 0;
	p->turn++;
	do {
		struct epoll_event event[EVENTS];
		uint64_t until = deadline;
		if (p->resumed && each(p, events, resume_one))
			goto failed;
		p->now_ns = clock_ns();
		if (p->blocked && p->now_ns + LOOK_NS < until)
			until = p->now_ns + LOOK_NS;
		if (p->resumed || PyList_Size(events))
			until = 0;
		uint64_t ms = until <= p->now_ns ? 0 : (until - p->now_ns + 999999) / 1000000;
		int n;
		Py_BEGIN_ALLOW_THREADS
		n = epoll_wait(p->epoll, event, EVENTS, ms > 1000000 ? 1000000 : (int)ms);
		Py_END_ALLOW_THREADS
		p->now_ns = clock_ns();
		if (n < 0) {
			if (errno != EINTR) {
				PyErr_SetFromErrno(PyExc_OSError);
				goto failed;
			}
			flags |= TRIO_READY; /* a signal: Python has to run its handler, and trio to hear of it */
			n = 0;
		}
		for (int i = 0; i < n; i++) {
			if (!event[i].data.u64)
				flags |= TRIO_READY;
			else if (handle(p, event + i, events))
				goto failed;
		}
		if (p->blocked && p->now_ns >= p->look_ns) {
			p->look_ns = p->now_ns + LOOK_NS;
			if (each(p, events, report_stalled))
				goto failed;
		}
		if (p->dirty_count && report_all(p, events))
			goto failed;
		if (p->now_ns >= deadline)
			flags |= EXPIRED;
		if (p->lost_event)
			flags |= SHORT;
	} while (!flags && !PyList_Size(events));
	PyTuple_SetItem(result, 0, events);
	PyTuple_SetItem(result, 1, PyLong_FromLong(flags)); /* a small int, for which Python needs no memory */
	return result;
failed:
	Py_XDECREF(events);
	Py_XDECREF(result);
	return NULL;
}

/* ---- the end of objects */

/* Take the socket away from a port. Its rest stays until it is attached or freed. */
static void let_go(Pump *p, Port *port)
{
	if (port->sock >= 0 && port->polled)
		poll_fd(p, EPOLL_CTL_DEL, port->sock, 0, 0);
	port->sock = -1;
	port->polled = port->full = port->told = 0;
	Py_CLEAR(port->tls);
	unblock(p, port);
}

/* Read and receive nothing more. */
static void halt(Pump *p, Object *object)
{
	if (object->kind == READER && !((Reader *)object)->told) {
		((Reader *)object)->told = 1;
		poll_queues(p, (Reader *)object, EPOLL_CTL_DEL, 0);
	} else if (object->kind == INLET && !((Inlet *)object)->told) {
		Inlet *in = (Inlet *)object;
		in->told = 1;
		p->resumed -= (uint32_t)in->resume;
		in->resume = 0;
		poll_fd(p, EPOLL_CTL_DEL, in->sock, 0, 0);
	}
}

/* Give up what an object holds, and the object. */
static void release(Pump *p, Object *object)
{
	if (object->kind == TABLE) {
		forget((Table *)object);
	} else if (object->kind == PORT) {
		let_go(p, (Port *)object);
		free(((Port *)object)->own);
	} else if (object->kind == READER) {
		Reader *r = (Reader *)object;
		for (uint32_t i = 0; i < p->size; i++) { /* what is lent of the slab must outlive it */
			Port *port = p->objects[i] && p->objects[i]->kind == PORT ? (Port *)p->objects[i] : NULL;
			if (port && port->lender == object->id && port->rest != port->own && !keep(port, (const uint8_t *)"", 0))
				port->failed = ENOMEM;
			if (port && port->failed)
				touch(p, &port->object); /* so that `report` sees it */
			if (port && port->lender == object->id) {
				port->lender = 0;
				if (port->failed) {
					port->sent = port->size = 0;
					touch(p, &port->object);
				}
			}
		}
		halt(p, object);
		if (r->view.obj)
			PyBuffer_Release(&r->view);
	} else if (object->kind == INLET) {
		halt(p, object);
		Inlet *in = (Inlet *)object;
		if (in->view.obj)
			PyBuffer_Release(&in->view);
		if (in->raw_view.obj)
			PyBuffer_Release(&in->raw_view);
		Py_CLEAR(in->tls);
	}
	uint32_t index = (uint32_t)object->id;
	p->objects[index] = NULL;
	if (index < p->lowest_free)
		p->lowest_free = index;
	free(object);
}

/* ---- what Python calls */

PyDoc_STRVAR(counts_doc, "counts() -> [(id, packets, bytes, arrivals, drops), ...]\n\nWhat was counted since the last call. What there\n"
	"is no memory for comes with the next one. Raises MemoryError.");

/* Move what an object has counted into the list. Returns -1 with an exception set; then the object still has it. */
static int take_counts(Object *object, PyObject *list)
{
	uint64_t none = 0, *packets = &none, *bytes = &none, *arrivals = &none, *drops = NULL;
	PyObject *reasons = NULL;
	if (object->kind == PORT) {
		Port *port = (Port *)object;
		packets = &port->packets, bytes = &port->bytes;
	} else if (object->kind == INLET) {
		Inlet *in = (Inlet *)object;
		packets = &in->packets, bytes = &in->bytes, arrivals = &in->arrivals, drops = in->drops;
	} else if (object->kind == READER)
		drops = ((Reader *)object)->drops;
	for (int i = 0; drops && i < DROP_REASONS && !reasons; i++)
		if (drops[i] && !(reasons = PyTuple_New(DROP_REASONS)))
			return -1;
	for (int i = 0; reasons && i < DROP_REASONS; i++) {
		PyObject *number = PyLong_FromUnsignedLongLong(drops[i]);
		if (!number || PyTuple_SetItem(reasons, i, number)) {
			Py_DECREF(reasons);
			return -1;
		}
	}
	PyObject *row = Py_BuildValue("(KKKKN)", (unsigned long long)object->id, (unsigned long long)*packets, (unsigned long long)*bytes,
		(unsigned long long)*arrivals, reasons ? reasons : Py_NewRef(Py_None));
	int result = row ? PyList_Append(list, row) : -1;
	Py_XDECREF(row);
	if (!result) {
		*packets = *bytes = *arrivals = 0;
		if (reasons)
			memset(drops, 0, DROP_REASONS * sizeof *drops);
		object->dirty = 0;
	}
	return result;
}

static PyObject *Pump_counts(PyObject *self, PyObject *unused)
{
	Pump *p = (Pump *)self;
	(void)unused;
	PyObject *list = PyList_New(0);
	if (!list)
		return NULL;
	uint32_t most = p->all_dirty ? p->size : p->dirty_count;
	for (uint32_t i = 0; i < most; i++) {
		uint64_t id = p->all_dirty ? p->objects[i] ? p->objects[i]->id : 0 : p->dirty[i];
		Object *object = (uint32_t)id < p->size ? p->objects[(uint32_t)id] : NULL;
		if (!object || object->id != id || !object->dirty || !take_counts(object, list))
			continue;
		if (PyErr_ExceptionMatches(PyExc_MemoryError) && PyList_Size(list)) {
			PyErr_Clear();
			return list; /* these are settled; the others still are dirty */
		}
		Py_DECREF(list);
		return NULL;
	}
	p->dirty_count = 0;
	p->all_dirty = 0;
	return list;
}

PyDoc_STRVAR(table_doc, "table(rules) -> id\n\nEach rule: (((at, mask, value), ...), ((at, size), ...)), offsets in a frame.");

static PyObject *Pump_table(PyObject *self, PyObject *rules)
{
	Table *t = create((Pump *)self, TABLE, sizeof *t);
	if (!t)
		return NULL;
	if (!PyTuple_Check(rules) || PyTuple_Size(rules) > MAX_RULES)
		goto wrong;
	for (; t->rules < (int)PyTuple_Size(rules); t->rules++) {
		Rule *rule = t->rule + t->rules;
		PyObject *guards, *pieces;
		size_t total = 0;
		if (!PyArg_ParseTuple(PyTuple_GetItem(rules, t->rules), "O!O!", &PyTuple_Type, &guards, &PyTuple_Type, &pieces))
			goto failed;
		if (PyTuple_Size(guards) > MAX_GUARDS || PyTuple_Size(pieces) > MAX_PIECES)
			goto wrong;
		for (; rule->guards < (int)PyTuple_Size(guards); rule->guards++) {
			Guard *g = rule->guard + rule->guards;
			if (!PyArg_ParseTuple(PyTuple_GetItem(guards, rule->guards), "Hbb", &g->at, &g->mask, &g->value))
				goto failed;
		}
		for (; rule->pieces < (int)PyTuple_Size(pieces); rule->pieces++) {
			Piece *piece = rule->piece + rule->pieces;
			if (!PyArg_ParseTuple(PyTuple_GetItem(pieces, rule->pieces), "HH", &piece->at, &piece->size))
				goto failed;
			total += piece->size;
		}
		if (total > KEY_BYTES)
			goto wrong;
	}
	return PyLong_FromUnsignedLongLong(t->object.id);
wrong:
	PyErr_SetString(PyExc_ValueError, "too many rules, guards, pieces or bytes of a key");
failed:
	release((Pump *)self, &t->object);
	return NULL;
}

PyDoc_STRVAR(learn_doc, "learn(table, frame, way, target) -> whether a rule has a key for the frame\n\n"
	"way: DROP with the number of a reason, DEVICE, or TO_PORT with the ID of a port.");

static PyObject *Pump_learn(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	unsigned long long id, target;
	Py_buffer frame;
	int way;
	if (!PyArg_ParseTuple(args, "Ky*iK", &id, &frame, &way, &target))
		return NULL;
	Table *t = found(p, id, TABLE);
	uint8_t key[KEY_BYTES];
	int rule = t ? key_of(t, frame.buf, (size_t)frame.len, key) : -1;
	PyBuffer_Release(&frame);
	if (!t)
		return NULL;
	if (way < DROP || way > TO_PORT || (way == DROP && target >= DROP_REASONS)) {
		PyErr_SetString(PyExc_ValueError, "no such verdict");
		return NULL;
	}
	if (rule < 0)
		return PyBool_FromLong(0);
	if (2 * (t->count + 1) > t->size && t->size < MAX_VERDICTS && grow(p, t) && !t->size)
		return PyErr_NoMemory();
	Verdict *v = slot_of(p, t, rule, key, 1);
	t->count += !v->used;
	int same = v->used && v->rule == rule && v->way == way && v->target == target && !memcmp(v->key, key, KEY_BYTES);
	uint64_t hits = same ? v->hits : 0; /* Python is shown known flows, too, and tells again what it has decided */
	*v = (Verdict){ .used = 1, .way = (uint8_t)way, .rule = (uint8_t)rule, .target = target, .hits = hits, .used_ns = clock_ns() };
	memcpy(v->key, key, KEY_BYTES);
	return PyBool_FromLong(1);
}

PyDoc_STRVAR(verdicts_doc, "verdicts(table) -> [(rule, key, way, target, hits, used_ns), ...]\n\nThe key is padded with zeros.");

static PyObject *Pump_verdicts(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Table *t = PyErr_Occurred() ? NULL : found((Pump *)self, id, TABLE);
	PyObject *list = t ? PyList_New(0) : NULL;
	/* Looked up anew, and copied, each time: what is allocated may start the garbage collector, which may free a table. */
	for (size_t i = 0; list && (t = found((Pump *)self, id, TABLE)) && i < t->size; i++) {
		const Verdict v = t->verdicts[i];
		if (!v.used)
			continue;
		PyObject *row = Py_BuildValue("(iy#iKKK)", v.rule, (const char *)v.key, (Py_ssize_t)KEY_BYTES, v.way,
			(unsigned long long)v.target, (unsigned long long)v.hits, (unsigned long long)v.used_ns);
		if (!row || PyList_Append(list, row))
			Py_CLEAR(list);
		Py_XDECREF(row);
	}
	if (!t)
		Py_CLEAR(list);
	return list;
}

PyDoc_STRVAR(forget_doc, "forget(table)\n\nDiscard its verdicts.");

static PyObject *Pump_forget(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Table *t = PyErr_Occurred() ? NULL : found((Pump *)self, id, TABLE);
	if (!t)
		return NULL;
	forget(t);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(port_doc, "port() -> id");

static PyObject *Pump_port(PyObject *self, PyObject *unused)
{
	(void)unused;
	Port *port = create((Pump *)self, PORT, sizeof *port);
	if (!port)
		return NULL;
	port->sock = -1;
	return PyLong_FromUnsignedLongLong(port->object.id);
}

PyDoc_STRVAR(attach_doc, "attach(port, socket, limit, tls=None)\n\nSend what is for the port on this socket, which must be on a\n"
	"chunk boundary. limit: bytes that may wait while it is full. tls: seals what is sent. Raises OSError.");

static PyObject *Pump_attach(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	unsigned long long id;
	int sock;
	unsigned int limit;
	PyObject *seals = Py_None;
	Tls *tls;
	if (!PyArg_ParseTuple(args, "KiI|O", &id, &sock, &limit, &seals) || !as_tls(seals, &tls))
		return NULL;
	Port *port = found(p, id, PORT);
	if (!port)
		return NULL;
	if (port->sock >= 0 || sock < 0) {
		PyErr_SetString(PyExc_ValueError, "attached already, or no socket");
		return NULL;
	}
	if (poll_fd(p, EPOLL_CTL_ADD, sock, 0, id))
		return PyErr_SetFromErrno(PyExc_OSError);
	port->sock = sock;
	port->polled = 1;
	port->limit = limit;
	Py_XINCREF((PyObject *)tls);
	port->tls = tls;
	port->failed = 0;
	port->unwatched = 0;
	port->watched_ns = clock_ns();
	Py_RETURN_NONE;
}

PyDoc_STRVAR(detach_doc, "detach(port) -> what its socket has not taken\n\nThe socket is the caller's again. With TLS the rest is\n"
	"sealed already. If there is no memory for the rest, it is lost, and `failure` is ENOMEM.");

static PyObject *Pump_detach(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Port *port = PyErr_Occurred() ? NULL : found((Pump *)self, id, PORT);
	if (!port)
		return NULL;
	PyObject *rest = PyBytes_FromStringAndSize((const char *)(port->size ? port->rest + port->sent : (const uint8_t *)""), (Py_ssize_t)(port->size - port->sent));
	if (!rest) {
		if (!PyErr_ExceptionMatches(PyExc_MemoryError))
			return NULL;
		PyErr_Clear();
		port->failed = port->failed ? port->failed : ENOMEM;
		rest = PyBytes_FromStringAndSize("", 0); /* which exists already */
	}
	let_go((Pump *)self, port);
	port->sent = port->size = 0;
	port->rest = NULL;
	free(port->own);
	port->own = NULL;
	port->own_bytes = 0;
	return rest;
}

PyDoc_STRVAR(failure_doc, "failure(port) -> the errno that ended its use of the socket that it had last; 0: none did");

static PyObject *Pump_failure(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Port *port = PyErr_Occurred() ? NULL : found((Pump *)self, id, PORT);
	return port ? PyLong_FromLong(port->failed) : NULL;
}

PyDoc_STRVAR(waiting_doc, "waiting(port) -> bytes that its socket has not taken");

static PyObject *Pump_waiting(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Port *port = PyErr_Occurred() ? NULL : found((Pump *)self, id, PORT);
	return port ? PyLong_FromSize_t(port->size - port->sent) : NULL;
}

PyDoc_STRVAR(outlet_doc, "outlet(fd) -> id\n\nA queue of a device, for writing.");

static PyObject *Pump_outlet(PyObject *self, PyObject *arg)
{
	long fd = PyLong_AsLong(arg);
	if (PyErr_Occurred())
		return NULL;
	Outlet *outlet = create((Pump *)self, OUTLET, sizeof *outlet);
	if (!outlet)
		return NULL;
	outlet->fd = (int)fd;
	return PyLong_FromUnsignedLongLong(outlet->object.id);
}

PyDoc_STRVAR(busy_doc, "busy(outlet, whether)\n\nWhether frames wait in Python for this queue, so that all others must.");

static PyObject *Pump_busy(PyObject *self, PyObject *args)
{
	unsigned long long id;
	int busy;
	if (!PyArg_ParseTuple(args, "Kp", &id, &busy))
		return NULL;
	Outlet *outlet = found((Pump *)self, id, OUTLET);
	if (!outlet)
		return NULL;
	outlet->busy = busy;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(halt_doc, "halt(id)\n\nTouch the descriptors of a reader or an inlet no more.");

static PyObject *Pump_halt(PyObject *self, PyObject *arg)
{
	Pump *p = (Pump *)self;
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Object *object = PyErr_Occurred() ? NULL : any(p, id);
	if (!object)
		return NULL;
	halt(p, object);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(free_doc, "free(id)\n\nEnd an object of any kind. What it has counted is lost, and what a port has not sent.");

static PyObject *Pump_free(PyObject *self, PyObject *arg)
{
	Pump *p = (Pump *)self;
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Object *object = PyErr_Occurred() ? NULL : any(p, id);
	if (!object)
		return NULL;
	release(p, object);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(reader_doc, "reader(queues, table, slab, burst, sole) -> id\n\nRead these queues of a device, in bursts of about so\n"
	"many bytes. slab: a writable buffer with room for a burst and OVERHEAD. sole: the port that gets nearly everything, or 0;\n"
	"while it is full, nothing is read. Raises OSError.");

static PyObject *Pump_reader(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	PyObject *queues, *slab;
	unsigned long long table, sole;
	unsigned int burst;
	if (!PyArg_ParseTuple(args, "O!KOIK", &PyTuple_Type, &queues, &table, &slab, &burst, &sole) || !found(p, table, TABLE))
		return NULL;
	Py_ssize_t number = PyTuple_Size(queues);
	int fd[MAX_QUEUES];
	for (Py_ssize_t i = 0; i < number && i < MAX_QUEUES; i++)
		fd[i] = (int)PyLong_AsLong(PyTuple_GetItem(queues, i));
	if (PyErr_Occurred())
		return NULL;
	Reader *r = create(p, READER, sizeof *r);
	if (!r)
		return NULL;
	r->told = 1; /* nothing is polled yet */
	if (PyObject_GetBuffer(slab, &r->view, PyBUF_WRITABLE)) {
		r->view.obj = NULL;
		goto failed;
	}
	if (number < 1 || number > MAX_QUEUES || burst > 1u << 24 || r->view.len < (Py_ssize_t)burst + OVERHEAD) {
		PyErr_SetString(PyExc_ValueError, "too many queues, or too small a slab");
		goto failed;
	}
	r->slab = r->view.buf;
	r->table = table;
	r->sole = sole;
	r->burst = burst;
	memcpy(r->fd, fd, sizeof fd);
	r->queues = (int)number;
	if (poll_queues(p, r, EPOLL_CTL_ADD, EPOLLIN)) {
		PyErr_SetFromErrno(PyExc_OSError);
		goto failed;
	}
	r->told = 0;
	return PyLong_FromUnsignedLongLong(r->object.id);
failed:
	release(p, &r->object);
	return NULL;
}

PyDoc_STRVAR(inlet_doc, "inlet(socket, outlet, table, buffer, head, tail, left, after_payload, tls=None, raw=None, raw_head=0,\n"
	"raw_tail=0) -> id\n\nReceive a chunked body into the buffer of a FrameReader, from its state on. With TLS, the records are\n"
	"received into `raw`, from its state on. Raises OSError.");

static PyObject *Pump_inlet(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	unsigned long long outlet, table, left;
	Py_ssize_t head, tail, raw_head = 0, raw_tail = 0;
	PyObject *buffer, *opens = Py_None, *raw = Py_None;
	int sock, after;
	Tls *tls;
	if (!PyArg_ParseTuple(args, "iKKOnnKp|OOnn", &sock, &outlet, &table, &buffer, &head, &tail, &left, &after, &opens, &raw,
			&raw_head, &raw_tail)
		|| !found(p, table, TABLE) || !found(p, outlet, OUTLET) || !as_tls(opens, &tls))
		return NULL;
	Inlet *in = create(p, INLET, sizeof *in);
	if (!in)
		return NULL;
	in->told = 1; /* nothing is polled yet */
	if (PyObject_GetBuffer(buffer, &in->view, PyBUF_WRITABLE)) {
		in->view.obj = NULL;
		goto failed;
	}
	/* The rest of a frame and one whole frame must always fit. */
	if (head < 0 || tail < head || tail > in->view.len || tail - head >= MAX_FRAME_BYTES || in->view.len < 3 * MAX_FRAME_BYTES) {
		PyErr_SetString(PyExc_ValueError, "no state of a FrameReader");
		goto failed;
	}
	if (tls) {
		if (PyObject_GetBuffer(raw, &in->raw_view, PyBUF_WRITABLE)) {
			in->raw_view.obj = NULL;
			goto failed;
		}
		if (raw_head < 0 || raw_tail < raw_head || raw_tail > in->raw_view.len || in->raw_view.len < 2 * MAX_RECORD_BYTES) {
			PyErr_SetString(PyExc_ValueError, "no state of a buffer for records");
			goto failed;
		}
		Py_INCREF((PyObject *)tls);
		in->tls = tls;
		in->raw = in->raw_view.buf;
		in->raw_cap = (size_t)in->raw_view.len;
		in->raw_head = (size_t)raw_head;
		in->raw_tail = (size_t)raw_tail;
	}
	in->sock = sock;
	in->outlet = outlet;
	in->table = table;
	in->buf = in->view.buf;
	in->cap = (size_t)in->view.len;
	in->head = (size_t)head;
	in->tail = in->pos = in->end = (size_t)tail;
	in->left = left;
	in->after_payload = after;
	if (poll_fd(p, EPOLL_CTL_ADD, sock, EPOLLIN, in->object.id)) {
		PyErr_SetFromErrno(PyExc_OSError);
		goto failed;
	}
	in->told = 0;
	in->resume = raw_head < raw_tail; /* there may be whole records */
	p->resumed += (uint32_t)in->resume;
	return PyLong_FromUnsignedLongLong(in->object.id);
failed:
	release(p, &in->object);
	return NULL;
}

PyDoc_STRVAR(state_doc, "state(inlet) -> (head, tail, pos, end, left, after_payload)");

static PyObject *Pump_state(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Inlet *in = PyErr_Occurred() ? NULL : found((Pump *)self, id, INLET);
	return in ? Py_BuildValue("(nnnnKi)", (Py_ssize_t)in->head, (Py_ssize_t)in->tail, (Py_ssize_t)in->pos, (Py_ssize_t)in->end,
		(unsigned long long)in->left, in->after_payload) : NULL;
}

PyDoc_STRVAR(raw_state_doc, "raw_state(inlet) -> (raw_head, raw_tail, other)\n\nother: the next record has other content than data.");

static PyObject *Pump_raw_state(PyObject *self, PyObject *arg)
{
	unsigned long long id = PyLong_AsUnsignedLongLong(arg);
	Inlet *in = PyErr_Occurred() ? NULL : found((Pump *)self, id, INLET);
	return in ? Py_BuildValue("(nnN)", (Py_ssize_t)in->raw_head, (Py_ssize_t)in->raw_tail, PyBool_FromLong(in->other)) : NULL;
}

PyDoc_STRVAR(valid_doc, "valid(frame) -> as wire.vnet.validate_vnet_header");

static PyObject *Pump_valid(PyObject *self, PyObject *frame)
{
	Py_buffer view;
	(void)self;
	if (PyObject_GetBuffer(frame, &view, PyBUF_SIMPLE))
		return NULL;
	int valid = vnet_is_valid(view.buf, (size_t)view.len);
	PyBuffer_Release(&view);
	return PyBool_FromLong(valid);
}

static int Pump_init(PyObject *self, PyObject *args, PyObject *keywords)
{
	Pump *p = (Pump *)self;
	int trio;
	(void)keywords;
	if (!PyArg_ParseTuple(args, "i", &trio))
		return -1;
	if (p->epoll >= 0) {
		PyErr_SetString(PyExc_ValueError, "initialised already");
		return -1;
	}
	p->seed = clock_ns() * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)p;
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll < 0 || (trio >= 0 && poll_fd(p, EPOLL_CTL_ADD, trio, EPOLLIN, 0))) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	return 0;
}

static PyObject *Pump_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	(void)args, (void)keywords;
	Pump *p = (Pump *)PyType_GenericNew(type, NULL, NULL);
	if (p)
		p->epoll = -1;
	return (PyObject *)p;
}

static void Pump_dealloc(PyObject *self)
{
	Pump *p = (Pump *)self;
	PyTypeObject *type = Py_TYPE(self);
	for (uint32_t i = 0; i < p->size; i++)
		if (p->objects[i])
			release(p, p->objects[i]);
	free(p->objects);
	free(p->generation);
	if (p->epoll >= 0)
		close(p->epoll);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

#define METHOD(name, flags) { #name, Pump_##name, flags, name##_doc }
static PyMethodDef methods[] = {
	METHOD(wait, METH_VARARGS), METHOD(counts, METH_NOARGS), METHOD(halt, METH_O), METHOD(free, METH_O),
	METHOD(table, METH_O), METHOD(learn, METH_VARARGS), METHOD(verdicts, METH_O), METHOD(forget, METH_O),
	METHOD(port, METH_NOARGS), METHOD(attach, METH_VARARGS), METHOD(detach, METH_O), METHOD(failure, METH_O), METHOD(waiting, METH_O),
	METHOD(outlet, METH_O), METHOD(busy, METH_VARARGS), METHOD(reader, METH_VARARGS),
	METHOD(inlet, METH_VARARGS), METHOD(state, METH_O), METHOD(raw_state, METH_O),
	{ "valid", Pump_valid, METH_O | METH_STATIC, valid_doc },
	{ NULL, NULL, 0, NULL },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, (void *)Pump_new }, { Py_tp_init, (void *)Pump_init }, { Py_tp_dealloc, (void *)Pump_dealloc },
	{ Py_tp_methods, methods }, { 0, NULL },
};
static PyType_Spec spec = { "tapotun_trio.datapath._pump.Pump", sizeof(Pump), 0, Py_TPFLAGS_DEFAULT, slots };
static PyMethodDef functions[] = {
	{ "mask", mask, METH_VARARGS, mask_doc }, { "mask_in_place", mask_in_place, METH_VARARGS, mask_in_place_doc },
	{ "load_crypto", load_crypto, METH_VARARGS, load_crypto_doc },
	{ NULL, NULL, 0, NULL },
};
static struct PyModuleDef definition = { PyModuleDef_HEAD_INIT, "_pump", NULL, -1, functions, NULL, NULL, NULL, NULL };

PyMODINIT_FUNC PyInit__pump(void)
{
	static const struct { const char *name; long value; } constant[] = {
		{ "ABI", ABI }, { "OVERHEAD", OVERHEAD }, { "MAX_QUEUES", MAX_QUEUES }, { "DROP", DROP }, { "DEVICE", DEVICE },
		{ "TO_PORT", TO_PORT }, { "BLOCKED", BLOCKED }, { "FAILED", FAILED }, { "WATCH", WATCH }, { "FRAMES", FRAMES },
		{ "UNUSUAL", UNUSUAL }, { "ENDED", ENDED }, { "TRIO_READY", TRIO_READY }, { "EXPIRED", EXPIRED },
		{ "SHORT", SHORT },
		{ "WANTS_MORE", WANTS_MORE }, { "NO_ROOM", NO_ROOM }, { "OTHER", OTHER }, { "MAX_RECORD_BYTES", MAX_RECORD_BYTES },
	};
	PyObject *module = PyModule_Create(&definition), *type = module ? PyType_FromSpec(&spec) : NULL;
	int failed = !type || PyModule_AddObjectRef(module, "Pump", type);
	if (!failed && !tls_type)
		failed = !(tls_type = (PyTypeObject *)PyType_FromSpec(&tls_spec));
	failed = failed || PyModule_AddObjectRef(module, "Tls", (PyObject *)tls_type);
	for (size_t i = 0; i < sizeof constant / sizeof *constant && !failed; i++)
		failed = PyModule_AddIntConstant(module, constant[i].name, constant[i].value);
	Py_XDECREF(type);
	if (failed)
		Py_CLEAR(module);
	return module;
}
