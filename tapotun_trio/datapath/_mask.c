/* The masking of WebSocket frames (RFC 6455 section 5.3): `wire.websocket.mask`. Included by _pump.c. */

#define MASK_KEY_BYTES 4

static void apply_mask(uint8_t *out, const uint8_t *in, size_t size, const uint8_t key[MASK_KEY_BYTES])
{
	uint64_t words, word;
	size_t i = 0;
	memcpy(&words, key, MASK_KEY_BYTES);
	memcpy((uint8_t *)&words + MASK_KEY_BYTES, key, MASK_KEY_BYTES);
	for (; size - i >= sizeof word; i += sizeof word) {
		memcpy(&word, in + i, sizeof word);
		word ^= words;
		memcpy(out + i, &word, sizeof word);
	}
	for (; i < size; i++)
		out[i] = in[i] ^ key[i % MASK_KEY_BYTES];
}

static int mask_key(const Py_buffer *key)
{
	if (key->len == MASK_KEY_BYTES)
		return 1;
	PyErr_SetString(PyExc_ValueError, "a masking key has 4 bytes");
	return 0;
}

PyDoc_STRVAR(mask_doc, "mask(payload, key) -> as wire.websocket.mask");

static PyObject *mask(PyObject *self, PyObject *args)
{
	Py_buffer payload, key;
	(void)self;
	if (!PyArg_ParseTuple(args, "y*y*", &payload, &key))
		return NULL;
	PyObject *masked = mask_key(&key) ? PyBytes_FromStringAndSize(NULL, payload.len) : NULL;
	if (masked)
		apply_mask((uint8_t *)PyBytes_AsString(masked), payload.buf, (size_t)payload.len, key.buf);
	PyBuffer_Release(&payload);
	PyBuffer_Release(&key);
	return masked;
}

PyDoc_STRVAR(mask_in_place_doc, "mask_in_place(buffer, start, stop, key)\n\nThe same for buffer[start:stop], without a copy.");

static PyObject *mask_in_place(PyObject *self, PyObject *args)
{
	Py_buffer buffer, key;
	Py_ssize_t start, stop;
	(void)self;
	if (!PyArg_ParseTuple(args, "w*nny*", &buffer, &start, &stop, &key))
		return NULL;
	int good = mask_key(&key);
	if (good && (start < 0 || stop < start || stop > buffer.len)) {
		PyErr_SetString(PyExc_ValueError, "not within the buffer");
		good = 0;
	}
	if (good)
		apply_mask((uint8_t *)buffer.buf + start, (uint8_t *)buffer.buf + start, (size_t)(stop - start), key.buf);
	PyBuffer_Release(&buffer);
	PyBuffer_Release(&key);
	return good ? Py_NewRef(Py_None) : NULL;
}
