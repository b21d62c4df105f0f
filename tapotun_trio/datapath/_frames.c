/* What is in a frame: the checks of its vnet header, and which frames Python may handle as one. Included by _pump.c. */

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

/* Whether a peer's kernel accepts the vnet header of an Ethernet frame: wire.vnet.validate_ethernet_vnet. */
static int ethernet_vnet_is_valid(const uint8_t *frame, size_t bytes)
{
	if (bytes < HEADER_BYTES + ETHERNET_BYTES)
		return 0;
	unsigned length = rd16(frame), flags = frame[2], gso = frame[3], hdr_len = rd16(frame + 4), gso_size = rd16(frame + 6);
	unsigned start = rd16(frame + 8), offset = rd16(frame + 10), at = ETHERNET_BYTES, ip_header = IPV4_BYTES;
	const uint8_t *ethernet = frame + HEADER_BYTES;
	if (flags & ~(unsigned)(NEEDS_CSUM | DATA_VALID) || length < ETHERNET_BYTES || length > bytes - HEADER_BYTES
		|| (hdr_len && (hdr_len < ETHERNET_BYTES || hdr_len > length)))
		return 0;
	if (!(flags & NEEDS_CSUM))
		return !gso;
	if (start > MAX_CSUM_START || start + offset + 2 > length)
		return 0;
	/* From here on, what is before `start` is there. */
	unsigned type = be16(ethernet + at - 2);
	for (int tags = 0; tags < 2 && (type == TYPE_VLAN || type == TYPE_SERVICE_VLAN) && at + VLAN_BYTES <= start; tags++) {
		at += VLAN_BYTES;
		type = be16(ethernet + at - 2);
	}
	const uint8_t *ip = ethernet + at;
	if (start < at + IPV4_BYTES)
		return 0;
	if (type == TYPE_IPV4)
		ip_header = (ip[0] & 15u) * 4;
	else if (type == TYPE_IPV6)
		ip_header = IPV6_BYTES;
	if (ip_header < IPV4_BYTES || start < at + ip_header)
		return 0;
	if (!gso)
		return 1;
	if ((type == TYPE_IPV4 && ip[0] >> 4 != 4) || (type == TYPE_IPV6 && ip[0] >> 4 != 6))
		return 0;
	if (gso_size >= GSO_BY_FRAGS || gso_size < MIN_GSO_BYTES || length > gso_size * MAX_SEGMENTS || offset != 16 || length < start + 20)
		return 0;
	gso &= ~(unsigned)GSO_ECN;
	if (type == TYPE_IPV6)
		return gso == GSO_TCPV6 && is_tcp_at(ip, start - at);
	return type == TYPE_IPV4 && gso == GSO_TCPV4 && ip[9] == TCP && start == at + ip_header;
}

PyDoc_STRVAR(valid_doc, "valid(frame, ethernet=False) -> as wire.vnet.validate_vnet_header, or validate_ethernet_vnet");

static PyObject *Pump_valid(PyObject *self, PyObject *args)
{
	Py_buffer view;
	int ethernet = 0;
	(void)self;
	if (!PyArg_ParseTuple(args, "y*|p", &view, &ethernet))
		return NULL;
	int valid = (ethernet ? ethernet_vnet_is_valid : vnet_is_valid)(view.buf, (size_t)view.len);
	PyBuffer_Release(&view);
	return PyBool_FromLong(valid);
}

/* Where in an Ethernet frame an IP header begins that carries TCP or UDP, maybe behind one tag; 0: there is none. Others
 * are passed on one by one. See wire.ethernet.ip_header_at. */
static unsigned ip_in_ethernet(const uint8_t *frame, size_t bytes)
{
	unsigned at = HEADER_BYTES + ETHERNET_BYTES;
	if (bytes < at + IPV4_BYTES)
		return 0;
	unsigned type = be16(frame + at - 2);
	if (type == TYPE_VLAN || type == TYPE_SERVICE_VLAN) {
		at += VLAN_BYTES;
		type = be16(frame + at - 2);
	}
	unsigned version = frame[at] >> 4, header = version == 6 ? IPV6_BYTES : IPV4_BYTES;
	if (!(type == TYPE_IPV4 && version == 4) && !(type == TYPE_IPV6 && version == 6))
		return 0;
	unsigned protocol = frame[at + (version == 6 ? 6 : 9)];
	return bytes >= at + header && (protocol == TCP || protocol == UDP) ? at : 0;
}

/* Where the IP header of a frame begins that may be in a block; 0: it may not. */
static unsigned block_ip_at(const uint8_t *frame, size_t bytes, int ethernet)
{
	if (frame[3])
		return 0;
	if (ethernet)
		return ip_in_ethernet(frame, bytes);
	unsigned version = frame[HEADER_BYTES] >> 4;
	return version == 4 || (version == 6 && bytes >= HEADER_BYTES + IPV6_BYTES) ? HEADER_BYTES : 0;
}

/* Whether two adjacent frames of one size belong to one block, whose IP headers begin at `at`: wire.uniform. */
static int alike(const uint8_t *a, const uint8_t *b, unsigned at)
{
	if (at != HEADER_BYTES && memcmp(a + HEADER_BYTES, b + HEADER_BYTES, at - HEADER_BYTES))
		return 0;
	const uint8_t *ip = a + at, *other = b + at;
	if (memcmp(a, b, HEADER_BYTES))
		return 0;
	if (ip[0] >> 4 == 6)
		return !memcmp(ip, other, IPV6_BYTES);
	return !memcmp(ip, other, 2) && !memcmp(ip + 8, other + 8, 2) && !memcmp(ip + 12, other + 12, 8);
}

/* The spans as a list of wire.frames.FrameRange. */
static PyObject *ranges(const uint8_t *buf, const Span *span, size_t spans, int ethernet)
{
	PyObject *list = PyList_New(0);
	for (size_t i = 0, j; list && i < spans; i = j) {
		const uint8_t *first = buf + span[i].start;
		size_t size = span[i].stop - span[i].start;
		unsigned at = block_ip_at(first, size, ethernet);
		j = i + 1;
		if (at)
			while (j < spans && span[j].stop - span[j].start == size && span[j].start == span[j - 1].stop
				&& alike(first, buf + span[j].start, at))
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
