/* Ports: the sending half of a session, which takes frames while a stream's socket is attached. Included by _pump.c. */

static void unblock(Pump *p, Port *port)
{
	if (!port->blocked_ns)
		return;
	port->blocked_ns = 0;
	p->blocked--;
	Reader *reader = find(p, port->holds, READER);
	port->holds = 0;
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
	if (port->blocked_ns) {
		unblock(p, port);
		watch_socket(p, port, 0);
	}
	return 1;
}

/* Room for this many bytes behind what waits. Returns NULL if there is no memory for them. */
static uint8_t *reserve(Port *port, size_t size)
{
	size_t waiting = port->size - port->sent;
	if (waiting + size > port->room) {
		size_t room = waiting + size > port->limit ? waiting + size : port->limit;
		uint8_t *rest = malloc(room);
		if (!rest)
			return NULL;
		if (waiting)
			memcpy(rest, port->rest + port->sent, waiting);
		free(port->rest);
		port->rest = rest;
		port->room = room;
	} else if (waiting && port->sent) {
		memmove(port->rest, port->rest + port->sent, waiting);
	}
	port->sent = 0;
	port->size = waiting;
	return port->rest + waiting;
}

/* Keep the parts from this byte on behind what waits. Returns whether there was memory. */
static int keep(Port *port, const struct iovec *part, size_t from, size_t total)
{
	uint8_t *to = reserve(port, total - from);
	if (!to)
		return 0;
	port->size += total - from;
	for (; total; total -= part->iov_len, part++) {
		size_t skip = from < part->iov_len ? from : part->iov_len;
		memcpy(to, (const uint8_t *)part->iov_base + skip, part->iov_len - skip);
		to += part->iov_len - skip;
		from -= skip;
	}
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

/* Send frames as one chunk. Returns whether the port took them; else they are Python's to send.
 *
 * `feeder`: a reader from which nothing is read any more until a full socket has taken all. */
static int give(Pump *p, Port *port, const uint8_t *frames, size_t bytes, uint64_t packets, Reader *feeder)
{
	char line[20];
	size_t head = (size_t)snprintf(line, sizeof line, "%zx\r\n", bytes), total = head + bytes + 2;
	const struct iovec part[3] = { { line, head }, { (void *)frames, bytes }, { (char *)"\r\n", 2 } };
	if (!takes(port))
		return 0;
	size_t waiting = port->size - port->sent, room = port->tls ? sealed_bytes(total) : total;
	if (waiting && waiting + room > port->limit) /* else a small backlog is cheaper than a change of hands */
		return refuse(p, port);
	if (port->tls) {
		uint8_t *to = reserve(port, room);
		size_t sealed = to ? seal(port->tls, APPLICATION_DATA, part, 3, to) : 0;
		if (!to)
			return refuse(p, port);
		if (!sealed)
			port->failed = EPROTO;
		port->size += sealed;
		if (sealed && !waiting)
			flush(p, port);
	} else if (waiting) {
		if (!keep(port, part, 0, total))
			return refuse(p, port);
	} else {
		const struct msghdr message = { .msg_iov = (struct iovec *)part, .msg_iovlen = 3 };
		ssize_t n;
		do
			n = sendmsg(port->sock, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
		while (n < 0 && errno == EINTR);
		size_t sent = n < 0 ? 0 : (size_t)n;
		if (n < 0 && errno != EAGAIN)
			port->failed = errno; /* the frames are lost with the stream, as in Sender._commit */
		else if (sent < total && !keep(port, part, sent, total)) {
			if (!sent)
				return refuse(p, port); /* nothing has left: Python may still send all of it */
			port->failed = ENOMEM;
		}
	}
	if (port->size && !waiting && !port->failed) {
		if (feeder) {
			port->holds = feeder->object.id;
			feeder->held = 1;
			poll_queues(p, feeder, EPOLL_CTL_MOD, 0);
		}
		block(p, port);
	}
	touch(p, &port->object);
	port->object.counts.packets += packets;
	port->object.counts.bytes += bytes - HEADER_BYTES * packets;
	port->unwatched += bytes;
	return 1;
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
	if (port->full || (port->blocked_ns && p->now_ns - port->blocked_ns >= STALLED_NS)) {
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

/* Take the socket away from a port. Its rest stays until `detach` asks for it, or the port is freed. */
static void let_go(Pump *p, Port *port)
{
	if (port->sock >= 0 && port->polled)
		poll_fd(p, EPOLL_CTL_DEL, port->sock, 0, 0);
	port->sock = -1;
	port->polled = port->full = port->told = 0;
	Py_CLEAR(port->tls);
	unblock(p, port);
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
	Port *port = named(self, arg, PORT);
	if (!port)
		return NULL;
	PyObject *rest = PyBytes_FromStringAndSize(port->size ? (const char *)port->rest + port->sent : "", (Py_ssize_t)(port->size - port->sent));
	if (!rest) {
		if (!PyErr_ExceptionMatches(PyExc_MemoryError))
			return NULL;
		PyErr_Clear();
		port->failed = port->failed ? port->failed : ENOMEM;
		rest = PyBytes_FromStringAndSize("", 0); /* which exists already */
	}
	let_go((Pump *)self, port);
	free(port->rest);
	port->rest = NULL;
	port->sent = port->size = port->room = 0;
	return rest;
}

PyDoc_STRVAR(failure_doc, "failure(port) -> the errno that ended its use of the socket that it had last; 0: none did");

static PyObject *Pump_failure(PyObject *self, PyObject *arg)
{
	Port *port = named(self, arg, PORT);
	return port ? PyLong_FromLong(port->failed) : NULL;
}

PyDoc_STRVAR(waiting_doc, "waiting(port) -> bytes that its socket has not taken\n\nAt least 1 if it has failed while attached: the rest\n"
	"of a chunk may be lost, so nobody may send behind it.");

static PyObject *Pump_waiting(PyObject *self, PyObject *arg)
{
	Port *port = named(self, arg, PORT);
	if (!port)
		return NULL;
	return PyLong_FromSize_t(port->size > port->sent ? port->size - port->sent : port->sock >= 0 && port->failed);
}
