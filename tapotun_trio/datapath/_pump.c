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
 * order in which objects must be freed. Before Python 3.12 whatever allocates a container may run the garbage collector,
 * which may free tables, ports and outlets: those are looked up anew after it. It frees no reader and no inlet, as these
 * belong to a task that waits.
 *
 * Descriptors belong to Python, which calls `detach`, `halt` or `free` before it closes one, or `close` before all.
 *
 * This file has the objects and the wait. It includes one for each subject: _frames.c and _table.c decide where a frame
 * goes, _ingress.c brings frames, _egress.c and _gro.c take them, _tls.c opens and seals records, _mask.c is for WebSockets.
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

#define ABI 4                   /* what plane.py expects */
#define LENGTH_BYTES 2          /* wire/frames.py has the layout of a frame */
#define VNET_BYTES 12
#define HEADER_BYTES (LENGTH_BYTES + VNET_BYTES)
#define MIN_PACKET_BYTES 20
#define ETHERNET_BYTES 14       /* the header, and the shortest frame */
#define VLAN_BYTES 4            /* a tag */
#define MAX_PACKET_BYTES 65535
#define MAX_FRAME_BYTES (HEADER_BYTES + MAX_PACKET_BYTES)
#define SLAB_START 16           /* where the first frame of a burst is: tun_io.py says why */
#define MAX_READS 512           /* frames of one burst */
#define MAX_SPANS 1024          /* frames of one turn of an inlet */
#define MAX_QUEUES 64           /* of one device */
#define MAX_RULES 8
#define MAX_GUARDS 8
#define MAX_PIECES 4
#define KEY_BYTES 40
#define MAX_VERDICTS 4096       /* of one table */
#define PROBES 8
#define DROP_REASONS 16
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
#define UDP 17
#define GSO_TCPV6 4
#define IPV6_BYTES 40
#define IPV4_BYTES 20           /* without options */

/* linux/if_ether.h: types of Ethernet frames. */
#define TYPE_IPV4 0x0800
#define TYPE_IPV6 0x86dd
#define TYPE_VLAN 0x8100        /* 802.1Q */
#define TYPE_SERVICE_VLAN 0x88a8 /* 802.1ad */

typedef enum { ANY, TABLE, PORT, OUTLET, READER, INLET } Kind;
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
static unsigned be16(const uint8_t *at) { return (unsigned)at[0] << 8 | at[1]; }

#include "_mask.c"
#include "_tls.c"

/* Every object begins with one. What is not counted is 0. */
typedef struct { uint64_t packets, bytes, arrivals, drops[DROP_REASONS]; } Counts;
typedef struct { Kind kind; uint64_t id; int dirty; Counts counts; } Object;

typedef struct { uint16_t at; uint8_t mask, value; } Guard;
typedef struct { uint16_t at, size; } Piece;
typedef struct { int guards, pieces; Guard guard[MAX_GUARDS]; Piece piece[MAX_PIECES]; } Rule;
typedef struct { uint8_t used, way, rule, key[KEY_BYTES]; uint64_t target, hits, used_ns; } Verdict;
typedef struct {
	Object object;
	Rule rule[MAX_RULES];
	int rules, ethernet; /* ethernet: what it is for carries Ethernet frames, not IP packets */
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
	uint8_t *rest; /* what the socket has not taken: rest[sent..size) */
	size_t sent, size, room, limit; /* limit: how much may wait when more comes */
	uint64_t holds, blocked_ns, watched_ns; /* holds: a reader that is held */
	size_t unwatched;
	Tls *tls; /* then the rest is sealed */
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
	int ethernet; /* as that of the table */
	int held; /* the sole port is full, so nothing is read */
	uint64_t shown; /* the turn in which Python got frames of the slab; nothing more is read in it */
	int told;
	uint8_t *slab;
	size_t burst;
	Py_buffer view;
} Reader;

/* The receiving half of a stream: the state of wire.frames.FrameReader and of wire.body.ChunkedBody. */
typedef struct {
	Object object;
	int sock, told, resume, after_payload;
	uint64_t shown; /* the turn in which Python got frames of the buffer; nothing more is received in it */
	uint64_t table, outlet;
	int ethernet; /* as that of the table */
	uint8_t *buf;
	size_t cap, head, tail, pos, end;
	uint64_t left;
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

static uint64_t clock_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- objects */

static Object *lookup(const Pump *p, uint64_t id)
{
	Object *object = (uint32_t)id < p->size ? p->objects[(uint32_t)id] : NULL;
	return object && object->id == id ? object : NULL;
}

static void *find(const Pump *p, uint64_t id, Kind kind)
{
	Object *object = lookup(p, id);
	return object && (kind == ANY || object->kind == kind) ? object : NULL;
}

/* For an ID from Python. Returns NULL with an exception set. */
static void *found(const Pump *p, uint64_t id, Kind kind)
{
	void *object = find(p, id, kind);
	if (!object)
		PyErr_SetString(PyExc_LookupError, "no such object");
	return object;
}

/* The same for the only argument of a method. */
static void *named(PyObject *pump, PyObject *id, Kind kind)
{
	unsigned long long number = PyLong_AsUnsignedLongLong(id);
	return PyErr_Occurred() ? NULL : found((Pump *)pump, number, kind);
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

static void release(Pump *p, Object *object);

#include "_frames.c"
#include "_table.c"
#include "_gro.c"

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

#include "_egress.c"
#include "_ingress.c"

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

static int report_touched(Pump *p, PyObject *events)
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
		if (port->size && !port->failed) { /* the first failure says why */
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
			if (each(p, events, report_one))
				goto failed;
		}
		if (p->dirty_count && report_touched(p, events))
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
		free(((Port *)object)->rest);
	} else if (object->kind == READER) {
		halt(p, object);
		if (((Reader *)object)->view.obj)
			PyBuffer_Release(&((Reader *)object)->view);
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
static int take_counts(const Pump *p, uint64_t id, PyObject *list)
{
	const Counts counts = lookup(p, id)->counts;
	PyObject *reasons = NULL;
	for (int i = 0; i < DROP_REASONS && !reasons; i++)
		if (counts.drops[i] && !(reasons = PyTuple_New(DROP_REASONS)))
			return -1;
	for (int i = 0; reasons && i < DROP_REASONS; i++) {
		PyObject *number = PyLong_FromUnsignedLongLong(counts.drops[i]);
		if (!number || PyTuple_SetItem(reasons, i, number)) {
			Py_DECREF(reasons);
			return -1;
		}
	}
	PyObject *row = Py_BuildValue("(KKKKN)", (unsigned long long)id, (unsigned long long)counts.packets, (unsigned long long)counts.bytes,
		(unsigned long long)counts.arrivals, reasons ? reasons : Py_NewRef(Py_None));
	int result = row ? PyList_Append(list, row) : -1;
	Py_XDECREF(row);
	Object *object = lookup(p, id); /* anew: what is allocated may start the garbage collector, which may free a port */
	if (!result && object) {
		memset(&object->counts, 0, sizeof object->counts);
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
		const Object *object = lookup(p, id);
		if (!object || !object->dirty || !take_counts(p, id, list))
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

PyDoc_STRVAR(halt_doc, "halt(id)\n\nTouch the descriptors of a reader or an inlet no more.");

static PyObject *Pump_halt(PyObject *self, PyObject *arg)
{
	Object *object = named(self, arg, ANY);
	if (!object)
		return NULL;
	halt((Pump *)self, object);
	Py_RETURN_NONE;
}

PyDoc_STRVAR(free_doc, "free(id)\n\nEnd an object of any kind. What it has counted is lost, and what a port has not sent.");

static PyObject *Pump_free(PyObject *self, PyObject *arg)
{
	Object *object = named(self, arg, ANY);
	if (!object)
		return NULL;
	release((Pump *)self, object);
	Py_RETURN_NONE;
}

static void close_epoll(Pump *p)
{
	if (p->epoll >= 0)
		close(p->epoll);
	p->epoll = -1; /* EBADF for whoever uses it */
}

PyDoc_STRVAR(close_doc, "close()\n\nTouch no descriptor any more, and close the pump's own. From then on `wait`, `attach`, `reader`\n"
	"and `inlet` raise OSError. Everything else answers as before: what a socket has not taken, the state of an inlet, counts.\n"
	"May be called again.");

static PyObject *Pump_close(PyObject *self, PyObject *unused)
{
	Pump *p = (Pump *)self;
	(void)unused;
	for (uint32_t i = 0; i < p->size; i++) {
		if (p->objects[i] && p->objects[i]->kind == PORT)
			let_go(p, (Port *)p->objects[i]);
		else if (p->objects[i])
			halt(p, p->objects[i]);
	}
	close_epoll(p);
	Py_RETURN_NONE;
}

static PyObject *Pump_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	int trio;
	(void)keywords;
	Pump *p = PyArg_ParseTuple(args, "i", &trio) ? (Pump *)PyType_GenericNew(type, NULL, NULL) : NULL;
	if (!p)
		return NULL;
	p->seed = clock_ns() * 0x9e3779b97f4a7c15u ^ (uint64_t)(uintptr_t)p;
	p->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (p->epoll < 0 || (trio >= 0 && poll_fd(p, EPOLL_CTL_ADD, trio, EPOLLIN, 0))) {
		PyErr_SetFromErrno(PyExc_OSError);
		Py_DECREF((PyObject *)p);
		return NULL;
	}
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
	close_epoll(p);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

#define METHOD(name, flags) { #name, Pump_##name, flags, name##_doc }
static PyMethodDef methods[] = {
	METHOD(wait, METH_VARARGS), METHOD(close, METH_NOARGS), METHOD(counts, METH_NOARGS), METHOD(halt, METH_O), METHOD(free, METH_O),
	METHOD(table, METH_VARARGS), METHOD(learn, METH_VARARGS), METHOD(verdicts, METH_O), METHOD(forget, METH_O),
	METHOD(port, METH_NOARGS), METHOD(attach, METH_VARARGS), METHOD(detach, METH_O), METHOD(failure, METH_O), METHOD(waiting, METH_O),
	METHOD(outlet, METH_O), METHOD(busy, METH_VARARGS), METHOD(reader, METH_VARARGS),
	METHOD(inlet, METH_VARARGS), METHOD(state, METH_O),
	{ "valid", Pump_valid, METH_VARARGS | METH_STATIC, valid_doc },
	{ NULL, NULL, 0, NULL },
};
static PyType_Slot slots[] = {
	{ Py_tp_new, (void *)Pump_new }, { Py_tp_dealloc, (void *)Pump_dealloc }, { Py_tp_methods, methods }, { 0, NULL },
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
		{ "ABI", ABI }, { "MAX_FRAME_BYTES", MAX_FRAME_BYTES }, { "MAX_QUEUES", MAX_QUEUES }, { "DROP", DROP }, { "DEVICE", DEVICE },
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
