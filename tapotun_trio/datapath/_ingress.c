/* Readers, from the device, and inlets, from a stream: they find frames, and pass them on. Included by _pump.c. */

/* Show Python these frames. If there is no memory for that, they are dropped. Returns -1 with an exception set. */
static int show(Pump *p, PyObject *events, Object *object, const uint8_t *buf, const Span *span, size_t spans, int ethernet)
{
	int lost = p->lost_event, result;
	PyObject *list = ranges(buf, span, spans, ethernet);
	p->lost_event = 0;
	result = list ? add_event(p, events, FRAMES, object->id, list) : lose_event(p);
	if (p->lost_event) {
		object->counts.drops[NO_MEMORY] += spans;
		touch(p, object);
	}
	p->lost_event |= lost;
	return result;
}

/* Give a run of frames to a port. What it does not take is added to `back`. Returns the number of spans there. */
static size_t give_run(Pump *p, Port *to, Reader *r, size_t run, size_t end, uint64_t packets, Span *back, size_t backs)
{
	if (!give(p, to, r->slab + run, end - run, packets, r->sole == to->object.id ? r : NULL))
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
	size_t backs = 0, at = SLAB_START, run = at;
	Port *to = NULL, *next = NULL;
	uint64_t packets = 0;
	int why = 0, result = 0;
	const ssize_t least = r->ethernet ? ETHERNET_BYTES : MIN_PACKET_BYTES;
	/* One byte more tells which frame is cut off: the largest packet behind an Ethernet header is too long. */
	const size_t most = VNET_BYTES + MAX_PACKET_BYTES + (r->ethernet ? 1 : 0);
	for (int n = 0; n < MAX_READS && at < r->burst; n++) {
		uint8_t *frame = r->slab + at;
		ssize_t k = read(fd, frame + LENGTH_BYTES, most); /* there is room for a frame behind the burst, and `at` is within it */
		if (k < 0) {
			if (errno == EINTR)
				continue;
			if (errno != EAGAIN)
				why = errno;
			break;
		}
		if (k < VNET_BYTES + least || k > VNET_BYTES + MAX_PACKET_BYTES
			|| (k < VNET_BYTES + IPV6_BYTES && !r->ethernet && frame[HEADER_BYTES] >> 4 == 6))
			continue; /* neither an IP packet nor an Ethernet frame; a frame cannot have such a length */
		size_t size = LENGTH_BYTES + (size_t)k;
		unsigned length = (unsigned)k - VNET_BYTES;
		frame[0] = length & 255;
		frame[1] = (uint8_t)(length >> 8);
		frame[12] = frame[13] = 0; /* num_buffers: kernels before 6.15 do not write it */
		Verdict *v = table ? judge(p, table, frame, size) : NULL;
		if (v && v->way == DROP) {
			r->object.counts.drops[v->target]++;
			touch(p, &r->object);
			continue; /* the next frame takes its place */
		}
		next = v && v->way == TO_PORT ? find(p, v->target, PORT) : NULL;
		if (next && !takes(next))
			next = NULL;
		if (next != to) {
			if (to)
				backs = give_run(p, to, r, run, at, packets, back, backs);
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
		backs = give_run(p, to, r, run, at, packets, back, backs);
	if (backs) {
		result = show(p, events, &r->object, r->slab, back, backs, r->ethernet);
		r->shown = p->turn;
	}
	if (why && !result) {
		r->told = 1;
		poll_queues(p, r, EPOLL_CTL_DEL, 0);
		result = add_event(p, events, FAILED, r->object.id, PyLong_FromLong(why));
	}
	return result;
}

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
		if (q == in->end) { /* so that the buffer is empty, and is used from its start again */
			in->after_payload = 0;
			in->pos = q;
			return 0;
		}
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
	const unsigned least = in->ethernet ? ETHERNET_BYTES : MIN_PACKET_BYTES;
	while (spans < MAX_SPANS && work++ < 4 * MAX_SPANS) {
		if (in->tail - in->head >= LENGTH_BYTES) {
			unsigned length = rd16(b + in->head);
			if (length >= least) {
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
	runs.ethernet = in->ethernet;
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
			in->object.counts.drops[v->target]++;
		} else if (v->way == DEVICE) {
			if (!outlet || outlet->busy || (frame[3] && (gso_size < MIN_GSO_BYTES || length > gso_size * MAX_SEGMENTS)))
				break;
			if ((full = !write_or_join(outlet, &runs, in->buf, span, (unsigned)i)))
				break;
		} else {
			if (!takes(next) || !(in->ethernet ? ethernet_vnet_is_valid(frame, size) : vnet_is_valid(frame, size)))
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
			in->object.counts.packets++;
			in->object.counts.bytes += span[n].stop - span[n].start - HEADER_BYTES;
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
			in->object.counts.arrivals++;
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
			if (show(p, events, &in->object, in->buf, span, back, in->ethernet))
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

PyDoc_STRVAR(reader_doc, "reader(queues, table, slab, burst, sole) -> id\n\nRead these queues of a device, in bursts of about so\n"
	"many bytes. slab: a writable buffer with room for a burst and a frame. sole: the port that gets nearly everything, or 0;\n"
	"while it is full, nothing is read. Raises OSError.");

static PyObject *Pump_reader(PyObject *self, PyObject *args)
{
	Pump *p = (Pump *)self;
	PyObject *queues, *slab;
	unsigned long long table, sole;
	unsigned int burst;
	Table *uses = PyArg_ParseTuple(args, "O!KOIK", &PyTuple_Type, &queues, &table, &slab, &burst, &sole) ? found(p, table, TABLE) : NULL;
	if (!uses)
		return NULL;
	const int ethernet = uses->ethernet;
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
	if (PyObject_GetBuffer(slab, &r->view, PyBUF_WRITABLE))
		goto failed;
	if (number < 1 || number > MAX_QUEUES || burst > 1u << 24 || r->view.len < (Py_ssize_t)burst + MAX_FRAME_BYTES) {
		PyErr_SetString(PyExc_ValueError, "too many queues, or too small a slab");
		goto failed;
	}
	r->slab = r->view.buf;
	r->table = table;
	r->ethernet = ethernet;
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
			&raw_head, &raw_tail))
		return NULL;
	const Table *uses = found(p, table, TABLE);
	if (!uses || !found(p, outlet, OUTLET) || !as_tls(opens, &tls))
		return NULL;
	const int ethernet = uses->ethernet;
	Inlet *in = create(p, INLET, sizeof *in);
	if (!in)
		return NULL;
	in->told = 1; /* nothing is polled yet */
	if (PyObject_GetBuffer(buffer, &in->view, PyBUF_WRITABLE))
		goto failed;
	/* The rest of a frame and one whole frame must always fit. */
	if (head < 0 || tail < head || tail > in->view.len || tail - head >= MAX_FRAME_BYTES || in->view.len < 3 * MAX_FRAME_BYTES) {
		PyErr_SetString(PyExc_ValueError, "no state of a FrameReader");
		goto failed;
	}
	if (tls) {
		if (PyObject_GetBuffer(raw, &in->raw_view, PyBUF_WRITABLE))
			goto failed;
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
	in->ethernet = ethernet;
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

PyDoc_STRVAR(state_doc, "state(inlet) -> (head, tail, pos, end, left, after_payload, raw_head, raw_tail, other)\n\n"
	"other: the next record has other content than data.");

static PyObject *Pump_state(PyObject *self, PyObject *arg)
{
	const Inlet *in = named(self, arg, INLET);
	return in ? Py_BuildValue("(nnnnKinnN)", (Py_ssize_t)in->head, (Py_ssize_t)in->tail, (Py_ssize_t)in->pos, (Py_ssize_t)in->end,
		(unsigned long long)in->left, in->after_payload, (Py_ssize_t)in->raw_head, (Py_ssize_t)in->raw_tail, PyBool_FromLong(in->other)) : NULL;
}
