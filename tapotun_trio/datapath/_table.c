/* Where a frame goes: rules that make its key, and the verdicts on keys. Included by _pump.c. */

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

PyDoc_STRVAR(table_doc, "table(rules, ethernet=False) -> id\n\nEach rule: (((at, mask, value), ...), ((at, size), ...)), offsets in a frame.\n"
	"ethernet: the frames carry Ethernet frames; readers and inlets that use the table check them as such.");

static PyObject *Pump_table(PyObject *self, PyObject *args)
{
	PyObject *rules;
	int ethernet = 0;
	if (!PyArg_ParseTuple(args, "O!|p", &PyTuple_Type, &rules, &ethernet))
		return NULL;
	Table *t = create((Pump *)self, TABLE, sizeof *t);
	if (!t)
		return NULL;
	t->ethernet = ethernet;
	if (PyTuple_Size(rules) > MAX_RULES)
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
	Table *t = named(self, arg, TABLE);
	PyObject *list = t ? PyList_New(0) : NULL;
	/* Looked up anew, and copied, each time: what is allocated may start the garbage collector, which may free a table. */
	for (size_t i = 0; list && (t = named(self, arg, TABLE)) && i < t->size; i++) {
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
	Table *t = named(self, arg, TABLE);
	if (!t)
		return NULL;
	forget(t);
	Py_RETURN_NONE;
}
