/* _tls: the record layer of TLS 1.3 (RFC 8446 section 5) after the handshake. `host/net/tls_records.py` is its user in
 * Python; the pump uses it for ports and inlets. Included by _pump.c.
 *
 *     0      1             3             5                                              5 + n
 *     +------+-------------+-------------+----------------------------------------------+
 *     | 0x17 | 0x03   0x03 | n, big end. | encrypted: content, its type: u8, zeros | tag 16 |
 *     +------+-------------+-------------+----------------------------------------------+
 *
 * The handshake is OpenSSL's, by Python's `ssl`, which also gives the secrets (its key log). The ciphers are those of the
 * libcrypto that Python's `ssl` has loaded. It is found at run time, so this module needs no headers and no library.
 *
 * A `Tls` object has the only copy of both directions' record numbers. All that is sealed or opened goes through it,
 * whether Python or the pump sends, so no number can be used twice. A direction in which libcrypto has failed is of no
 * more use: its number becomes NO_MORE. It is called with the GIL held.
 *
 * What comes from the peer is untrusted. What was decrypted is used only if its tag is right; else it is wiped.
 */
#include <dlfcn.h>

#define RECORD_HEAD 5
#define RECORD_BYTES 16384      /* of content: RFC 8446 section 5.1 */
#define MAX_EXPANSION 256       /* section 5.2: a longer record is an error */
#define TAG_BYTES 16
#define MAX_RECORD_BYTES (RECORD_HEAD + RECORD_BYTES + MAX_EXPANSION)
#define SEALED_OVERHEAD (RECORD_HEAD + 1 + TAG_BYTES)
#define IV_BYTES 12
#define MAX_SECRET_BYTES 48
#define MAX_KEY_BYTES 32
#define KEY_UPDATE_BYTES 5      /* the message */
#define NO_MORE UINT64_MAX      /* section 5.3: a number must not wrap */
#define HANDSHAKE 22
#define APPLICATION_DATA 23
/* Records under one key. AES-GCM allows 2^24.5 full ones (section 5.5); a KeyUpdate goes out well before. */
#define MAX_RECORDS (1u << 23)
/* openssl/evp.h */
#define GET_TAG 0x10
#define SET_TAG 0x11

typedef struct evp_cipher_ctx Context;
static struct {
	int loaded;
	Context *(*create)(void);
	void (*destroy)(Context *);
	int (*init)(Context *, const void *cipher, void *engine, const uint8_t *key, const uint8_t *iv, int encrypt);
	int (*update)(Context *, uint8_t *out, int *written, const uint8_t *in, int size);
	int (*final)(Context *, uint8_t *out, int *written);
	int (*control)(Context *, int what, int size, void *data);
	uint8_t *(*hmac)(const void *hash, const void *key, int key_bytes, const uint8_t *data, size_t bytes, uint8_t *out, unsigned *written);
	void (*clear_errors)(void);
	const void *(*cipher[3])(void);
	const void *(*hash[3])(void);
} crypto;

/* The suites 0x1301, 0x1302 and 0x1303 (RFC 8446 appendix B.4). */
static const struct { const char *cipher, *hash; uint8_t key_bytes, hash_bytes; } suites[3] = {
	{ "EVP_aes_128_gcm", "EVP_sha256", 16, 32 },
	{ "EVP_aes_256_gcm", "EVP_sha384", 32, 48 },
	{ "EVP_chacha20_poly1305", "EVP_sha256", 32, 32 },
};

typedef struct { Context *context; uint8_t secret[MAX_SECRET_BYTES], iv[IV_BYTES]; uint64_t number; } Direction;
typedef struct {
	PyObject_HEAD
	int suite, update_due; /* update_due: our own keys change before the next record */
	uint64_t most; /* records under one of our keys */
	Direction out, in;
} Tls;

/* ---- keys */

/* HKDF-Expand-Label with an empty context (section 7.1). `bytes` is at most the hash's size, so one HMAC does. */
static int expand(const Tls *t, const uint8_t *secret, const char *label, uint8_t *out, size_t bytes)
{
	uint8_t info[32], hash[64];
	size_t label_bytes = strlen(label), n = 0;
	unsigned written = 0;
	info[n++] = 0;
	info[n++] = (uint8_t)bytes;
	info[n++] = (uint8_t)(6 + label_bytes);
	memcpy(info + n, "tls13 ", 6);
	memcpy(info + n + 6, label, label_bytes);
	n += 6 + label_bytes;
	info[n++] = 0;
	info[n++] = 1; /* the first block of HKDF-Expand (RFC 5869) */
	int good = crypto.hmac(crypto.hash[t->suite](), secret, suites[t->suite].hash_bytes, info, n, hash, &written) && written >= bytes;
	if (good)
		memcpy(out, hash, bytes);
	explicit_bzero(hash, sizeof hash);
	return good;
}

/* libcrypto has failed. The direction may still have the old key or the old IV, whose numbers are used. */
static int give_up(Direction *d)
{
	d->number = NO_MORE;
	crypto.clear_errors(); /* else Python's `ssl` takes them for its own */
	return 0;
}

/* Begin to use the direction's secret (section 7.3). */
static int use_secret(const Tls *t, Direction *d, int encrypt)
{
	uint8_t key[MAX_KEY_BYTES];
	int good = expand(t, d->secret, "key", key, suites[t->suite].key_bytes) && expand(t, d->secret, "iv", d->iv, IV_BYTES)
		&& crypto.init(d->context, crypto.cipher[t->suite](), NULL, key, NULL, encrypt);
	explicit_bzero(key, sizeof key);
	if (!good)
		return give_up(d);
	d->number = 0;
	return 1;
}

/* The next generation of the direction's keys (section 7.2). */
static int update_keys(const Tls *t, Direction *d, int encrypt)
{
	uint8_t next[MAX_SECRET_BYTES] = { 0 };
	int good = expand(t, d->secret, "traffic upd", next, suites[t->suite].hash_bytes);
	if (good)
		memcpy(d->secret, next, sizeof next);
	explicit_bzero(next, sizeof next);
	return good ? use_secret(t, d, encrypt) : give_up(d);
}

/* Begin a record: its nonce (section 5.3), and its head as additional data. */
static int begin_record(Direction *d, const uint8_t *head)
{
	uint8_t nonce[IV_BYTES];
	int unused;
	memcpy(nonce, d->iv, IV_BYTES);
	for (int i = 0; i < 8; i++)
		nonce[IV_BYTES - 1 - i] ^= (uint8_t)(d->number >> 8 * i);
	return d->number != NO_MORE && crypto.init(d->context, NULL, NULL, NULL, nonce, -1)
		&& crypto.update(d->context, NULL, &unused, head, RECORD_HEAD);
}

/* ---- sealing */

/* The most that this much content becomes: each record may follow a KeyUpdate. */
static size_t sealed_bytes(size_t content)
{
	return content + (content / RECORD_BYTES + 1) * (2 * SEALED_OVERHEAD + KEY_UPDATE_BYTES);
}

/* Seal `size` bytes of the parts, from `*at` of the first on, as one record. Returns its size; 0: libcrypto failed. */
static size_t seal_record(Tls *t, uint8_t type, const struct iovec **part, size_t *at, size_t size, uint8_t *out)
{
	size_t body = size + 1 + TAG_BYTES;
	uint8_t *to = out + RECORD_HEAD;
	int n;
	out[0] = APPLICATION_DATA;
	out[1] = out[2] = 3;
	out[3] = (uint8_t)(body >> 8);
	out[4] = (uint8_t)body;
	if (!begin_record(&t->out, out))
		return 0;
	t->out.number++; /* whatever happens, this nonce is used */
	while (size) {
		size_t more = (*part)->iov_len - *at < size ? (*part)->iov_len - *at : size;
		const uint8_t *from = (const uint8_t *)(*part)->iov_base + *at;
		if (more && (!crypto.update(t->out.context, to, &n, from, (int)more) || n != (int)more))
			return 0;
		to += more;
		size -= more;
		*at += more;
		if (*at == (*part)->iov_len) {
			++*part;
			*at = 0;
		}
	}
	if (!crypto.update(t->out.context, to, &n, &type, 1) || n != 1 || !crypto.final(t->out.context, to + 1, &n)
		|| !crypto.control(t->out.context, GET_TAG, TAG_BYTES, to + 1))
		return 0;
	return RECORD_HEAD + body;
}

/* Seal the parts into as few records as possible. `out` has room for `sealed_bytes`. Returns the size; 0: libcrypto failed,
 * now or before, and nothing can be sent any more. */
static size_t seal(Tls *t, uint8_t type, const struct iovec *part, int parts, uint8_t *out)
{
	size_t left = 0, done = 0, at = 0, n;
	for (int i = 0; i < parts; i++)
		left += part[i].iov_len;
	while (left) {
		if (t->update_due || t->out.number >= t->most) {
			static uint8_t message[KEY_UPDATE_BYTES] = { 24, 0, 0, 1, 0 }; /* update_not_requested */
			const struct iovec update = { message, sizeof message }, *first = &update;
			size_t from = 0;
			n = seal_record(t, HANDSHAKE, &first, &from, sizeof message, out + done);
			if (!n)
				return (size_t)give_up(&t->out);
			if (!update_keys(t, &t->out, 1))
				return 0;
			t->update_due = 0;
			done += n;
		}
		size_t size = left < RECORD_BYTES ? left : RECORD_BYTES;
		n = seal_record(t, type, &part, &at, size, out + done);
		if (!n)
			return (size_t)give_up(&t->out);
		done += n;
		left -= size;
	}
	return done;
}

/* ---- opening */

/* The size of a record's body; 0: no record that may follow a handshake. */
static size_t body_bytes(const uint8_t *head)
{
	size_t n = (size_t)head[3] << 8 | head[4];
	int good = head[0] == APPLICATION_DATA && head[1] == 3 && head[2] == 3 && n > TAG_BYTES && n <= RECORD_BYTES + MAX_EXPANSION;
	return good ? n : 0;
}

/* What may be wrong with a record that was decrypted. */
enum { BAD_TAG = 0, NO_TYPE = -1, TOO_LONG = -2 };

/* Decrypt a whole record to `out`, which has room for its body without the tag. Does not count it. Returns the type of
 * its content, and its size in `content`; or what is wrong with it. */
static int open_record(Tls *t, const uint8_t *record, size_t body, uint8_t *out, size_t *content)
{
	size_t size = body - TAG_BYTES;
	uint8_t tag[TAG_BYTES], none;
	int n;
	memcpy(tag, record + RECORD_HEAD + size, TAG_BYTES);
	int good = begin_record(&t->in, record) && crypto.update(t->in.context, out, &n, record + RECORD_HEAD, (int)size) && n == (int)size
		&& crypto.control(t->in.context, SET_TAG, TAG_BYTES, tag) && crypto.final(t->in.context, &none, &n) > 0;
	size_t end = size;
	while (good && end && !out[end - 1])
		end--;
	if (!good || !end || end - 1 > RECORD_BYTES) {
		explicit_bzero(out, size);
		crypto.clear_errors(); /* else Python's `ssl` takes them for its own */
		return !good ? BAD_TAG : !end ? NO_TYPE : TOO_LONG;
	}
	*content = end - 1;
	return out[end - 1];
}

/* Why `open_records` has stopped. */
enum { WANTS_MORE, NO_ROOM, OTHER };

/* Open the whole records of raw[*at..end) to `out`, and count their content in `used`. Stops at a record of any other
 * content, or of none, which is left untouched: Python looks at it. */
static int open_records(Tls *t, const uint8_t *raw, size_t *at, size_t end, uint8_t *out, size_t room, size_t *used)
{
	while (end - *at >= RECORD_HEAD) {
		size_t body = body_bytes(raw + *at), content;
		if (!body)
			return OTHER;
		if (end - *at < RECORD_HEAD + body)
			break;
		if (room - *used < body - TAG_BYTES)
			return NO_ROOM;
		int type = open_record(t, raw + *at, body, out + *used, &content);
		if (type != APPLICATION_DATA || !content) {
			if (type > 0)
				explicit_bzero(out + *used, body - TAG_BYTES);
			return OTHER;
		}
		t->in.number++;
		*at += RECORD_HEAD + body;
		*used += content;
	}
	return WANTS_MORE;
}

/* ---- what Python calls */

PyDoc_STRVAR(load_crypto_doc, "load_crypto(path) -> whether `Tls` can be used\n\npath: of Python's module _ssl, which has loaded\n"
	"libcrypto.");

static PyObject *load_crypto(PyObject *self, PyObject *args)
{
	const char *path;
	(void)self;
	if (!PyArg_ParseTuple(args, "s", &path))
		return NULL;
	void *library = crypto.loaded ? NULL : dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
	if (library) { /* it stays open: what was found in it is used from now on */
		struct { const char *name; void *to; } wanted[] = {
			{ "EVP_CIPHER_CTX_new", &crypto.create }, { "EVP_CIPHER_CTX_free", &crypto.destroy },
			{ "EVP_CipherInit_ex", &crypto.init }, { "EVP_CipherUpdate", &crypto.update },
			{ "EVP_CipherFinal_ex", &crypto.final }, { "EVP_CIPHER_CTX_ctrl", &crypto.control },
			{ "HMAC", &crypto.hmac }, { "ERR_clear_error", &crypto.clear_errors },
			{ suites[0].cipher, &crypto.cipher[0] }, { suites[1].cipher, &crypto.cipher[1] },
			{ suites[2].cipher, &crypto.cipher[2] }, { suites[0].hash, &crypto.hash[0] },
			{ suites[1].hash, &crypto.hash[1] }, { suites[2].hash, &crypto.hash[2] },
		};
		crypto.loaded = 1;
		for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
			void *symbol = dlsym(library, wanted[i].name);
			if (symbol)
				memcpy(wanted[i].to, &symbol, sizeof symbol);
			else
				crypto.loaded = 0;
		}
	}
	return PyBool_FromLong(crypto.loaded);
}

static int hex_bytes(const Py_buffer *text, uint8_t *out, size_t bytes)
{
	const uint8_t *from = text->buf;
	if ((size_t)text->len != 2 * bytes)
		return 0;
	for (size_t i = 0; i < bytes; i++) {
		int high = hex(from[2 * i]), low = hex(from[2 * i + 1]);
		if (high < 0 || low < 0)
			return 0;
		out[i] = (uint8_t)(high << 4 | low);
	}
	return 1;
}

static void forget_keys(Tls *t)
{
	Direction *both[] = { &t->out, &t->in };
	for (int i = 0; i < 2; i++) {
		if (both[i]->context)
			crypto.destroy(both[i]->context); /* wipes the key */
		explicit_bzero(both[i], sizeof *both[i]);
	}
}

static void Tls_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);
	forget_keys((Tls *)self);
	((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
	Py_DECREF(type);
}

static PyObject *Tls_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
	Py_buffer out, in;
	unsigned int most = MAX_RECORDS;
	int suite;
	(void)keywords;
	if (!PyArg_ParseTuple(args, "iy*y*|I", &suite, &out, &in, &most))
		return NULL;
	const char *wrong = NULL;
	Tls *t = NULL;
	if (!crypto.loaded || suite < 0x1301 || suite > 0x1303 || !most || most > MAX_RECORDS) {
		wrong = "no libcrypto, or no such suite or number";
	} else if ((t = (Tls *)PyType_GenericNew(type, NULL, NULL))) {
		t->suite = suite - 0x1301;
		t->most = most;
		size_t bytes = suites[t->suite].hash_bytes;
		if (!hex_bytes(&out, t->out.secret, bytes) || !hex_bytes(&in, t->in.secret, bytes)) {
			wrong = "a secret is not as long as the suite's hash";
		} else if (!(t->out.context = crypto.create()) || !(t->in.context = crypto.create())
			|| !use_secret(t, &t->out, 1) || !use_secret(t, &t->in, 0)) {
			crypto.clear_errors();
			wrong = "libcrypto does not have the cipher";
		}
	}
	PyBuffer_Release(&out);
	PyBuffer_Release(&in);
	if (wrong) {
		PyErr_SetString(PyExc_ValueError, wrong);
		Py_CLEAR(t);
	}
	return (PyObject *)t;
}

PyDoc_STRVAR(seal_doc, "seal(data, kind=23) -> its records\n\nThey must be sent, before any others. kind: of content; 23 is data.\n"
	"Raises ValueError if libcrypto fails: then, and at any later time.");

static PyObject *Tls_seal(PyObject *self, PyObject *args)
{
	Tls *t = (Tls *)self;
	Py_buffer view;
	unsigned char kind = APPLICATION_DATA;
	if (!PyArg_ParseTuple(args, "y*|b", &view, &kind))
		return NULL;
	const struct iovec part = { view.buf, (size_t)view.len };
	PyObject *result = NULL;
	uint8_t *out = malloc(sealed_bytes(part.iov_len));
	size_t size = out ? seal(t, kind, &part, 1, out) : 0;
	if (size || (out && !part.iov_len))
		result = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)size);
	else if (out)
		PyErr_SetString(PyExc_ValueError, "libcrypto failed");
	else
		PyErr_NoMemory();
	free(out);
	PyBuffer_Release(&view);
	return result;
}

PyDoc_STRVAR(open_doc, "open(raw, start, stop, into) -> (start, bytes, why)\n\nOpen the whole records of raw[start:stop] until one\n"
	"has no room in `into`, or other content than data. why: WANTS_MORE, NO_ROOM or OTHER.");

static PyObject *Tls_open(PyObject *self, PyObject *args)
{
	Tls *t = (Tls *)self;
	Py_buffer raw, into;
	Py_ssize_t start, stop;
	if (!PyArg_ParseTuple(args, "y*nnw*", &raw, &start, &stop, &into))
		return NULL;
	PyObject *result = NULL;
	if (start < 0 || stop < start || stop > raw.len) {
		PyErr_SetString(PyExc_ValueError, "not within the buffer");
	} else {
		size_t at = (size_t)start, used = 0;
		int why = open_records(t, raw.buf, &at, (size_t)stop, into.buf, (size_t)into.len, &used);
		result = Py_BuildValue("(nni)", (Py_ssize_t)at, (Py_ssize_t)used, why);
	}
	PyBuffer_Release(&raw);
	PyBuffer_Release(&into);
	return result;
}

PyDoc_STRVAR(take_doc, "take(raw, start, stop) -> (start, type, content)\n\nOpen one whole record, whatever its content. Raises\n"
	"ValueError with OpenSSL's name for what is wrong.");

static PyObject *Tls_take(PyObject *self, PyObject *args)
{
	Tls *t = (Tls *)self;
	Py_buffer raw;
	Py_ssize_t start, stop;
	if (!PyArg_ParseTuple(args, "y*nn", &raw, &start, &stop))
		return NULL;
	uint8_t out[RECORD_BYTES + MAX_EXPANSION];
	PyObject *result = NULL;
	if (start < 0 || stop > raw.len || stop - start < RECORD_HEAD) {
		PyErr_SetString(PyExc_ValueError, "not within the buffer");
	} else {
		const uint8_t *record = (const uint8_t *)raw.buf + start;
		size_t body = body_bytes(record), content = 0;
		int type = 0;
		if (!body)
			PyErr_SetString(PyExc_ValueError, record[0] != APPLICATION_DATA ? "UNEXPECTED_MESSAGE"
				: record[1] != 3 || record[2] != 3 ? "WRONG_VERSION_NUMBER"
				: ((size_t)record[3] << 8 | record[4]) <= TAG_BYTES ? "LENGTH_TOO_SHORT" : "PACKET_LENGTH_TOO_LONG");
		else if ((size_t)(stop - start) < RECORD_HEAD + body)
			PyErr_SetString(PyExc_ValueError, "not within the buffer");
		else if ((type = open_record(t, record, body, out, &content)) <= 0)
			PyErr_SetString(PyExc_ValueError, type == NO_TYPE ? "BAD_RECORD_TYPE"
				: type == TOO_LONG ? "DATA_LENGTH_TOO_LONG" : "DECRYPTION_FAILED_OR_BAD_RECORD_MAC");
		if (type > 0) {
			t->in.number++;
			result = Py_BuildValue("(niy#)", start + RECORD_HEAD + (Py_ssize_t)body, type, (const char *)out, (Py_ssize_t)content);
			explicit_bzero(out, sizeof out);
		}
	}
	PyBuffer_Release(&raw);
	return result;
}

PyDoc_STRVAR(update_doc, "update(answer)\n\nThe peer has changed its keys: use the next. answer: change ours, too, before the next\n"
	"record. Raises ValueError if libcrypto fails: nothing can be received then.");

static PyObject *Tls_update(PyObject *self, PyObject *args)
{
	Tls *t = (Tls *)self;
	int answer;
	if (!PyArg_ParseTuple(args, "p", &answer))
		return NULL;
	if (!update_keys(t, &t->in, 0)) {
		PyErr_SetString(PyExc_ValueError, "libcrypto failed");
		return NULL;
	}
	t->update_due |= answer;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(numbers_doc, "numbers() -> (sealed, opened)\n\nRecords under the present keys.");

static PyObject *Tls_numbers(PyObject *self, PyObject *unused)
{
	(void)unused;
	return Py_BuildValue("(KK)", (unsigned long long)((Tls *)self)->out.number, (unsigned long long)((Tls *)self)->in.number);
}

static PyMethodDef tls_methods[] = {
	{ "seal", Tls_seal, METH_VARARGS, seal_doc }, { "open", Tls_open, METH_VARARGS, open_doc },
	{ "take", Tls_take, METH_VARARGS, take_doc }, { "update", Tls_update, METH_VARARGS, update_doc },
	{ "numbers", Tls_numbers, METH_NOARGS, numbers_doc },
	{ NULL, NULL, 0, NULL },
};
static PyType_Slot tls_slots[] = {
	{ Py_tp_new, (void *)Tls_new }, { Py_tp_dealloc, (void *)Tls_dealloc }, { Py_tp_methods, tls_methods }, { 0, NULL },
};
static PyType_Spec tls_spec = { "tapotun_trio.datapath._pump.Tls", sizeof(Tls), 0, Py_TPFLAGS_DEFAULT, tls_slots };
static PyTypeObject *tls_type; /* the process has one */

/* A Tls object, or None. Returns whether it is one of these. */
static int as_tls(PyObject *object, Tls **tls)
{
	*tls = object == Py_None ? NULL : (Tls *)object;
	if (!*tls || PyObject_TypeCheck(object, tls_type))
		return 1;
	PyErr_SetString(PyExc_TypeError, "no Tls object");
	return 0;
}
