/* udpflood: numbered UDP datagrams from one socket to others, counted where they arrive.
 *
 *     udpflood TX RX[,RX...] SIZE RATE SECONDS
 *     udpflood TX @FILE SIZE RATE SECONDS
 *
 * TX and the RXs are file descriptors of UDP sockets of IPv4 or of IPv6, inherited, in whichever network namespaces; the
 * RXs are bound.
 * Datagrams of SIZE bytes (8 to 65507) go to the RXs in turn, one flow each, or to the IPv4 addresses that FILE has,
 * one a line, at port 9, uncounted there: RATE a second of all flows together, or as fast as they go if RATE is 0.
 * A sender that falls behind does not catch up by more than CATCH_UP_NS. Prints
 *
 *     {"sent": n, "send_s": s, "received": n, "duplicates": n, "reordered": n, "steady": n, "steady_s": s}
 *
 * `received` counts each number once; `steady` is what came between a fifth of SECONDS and their end: a rate that no
 * queue flatters. The receiver sleeps between looks, so that counting costs the machine little.
 *
 *     cc -O2 -Wall -pthread -o udpflood udpflood.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64
#define FLOWS 64
#define TARGETS 65536
#define DISCARD 9 /* RFC 863 */
#define TICK_NS 250000LL     /* a paced sender's pause: 25 datagrams at 100,000 a second */
#define CATCH_UP_NS 2000000LL
#define LOOK_NS 1000000LL    /* a receiver's pause; its buffer holds far more than comes meanwhile */
#define QUIET_NS 120000000LL /* silence after the last datagram sent that ends the count; an outbox keeps 100 ms */
#define DRAIN_NS 500000000LL /* and the longest wait for that */
#define RCVBUF (64 << 20)
#define NUMBERS (1ULL << 27) /* more than can be sent in any run of this */

static int rx[FLOWS], flows, tx; /* flows: how many there are to count */
static union { struct sockaddr any; struct sockaddr_in ipv4; struct sockaddr_in6 ipv6; } to[TARGETS];
static socklen_t to_len = sizeof(struct sockaddr_in);
static int targets;
static size_t size;
static int64_t begun, steady_from, steady_to;
static volatile int64_t sending_ended;
static uint64_t received, duplicates, reordered, steady;
static unsigned char seen[NUMBERS / 8];

static void die(const char *what) { perror(what); exit(1); }

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void pause_until(int64_t when)
{
	struct timespec t = { when / 1000000000LL, when % 1000000000LL };
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) { }
}

/* Everything that waits on one socket. Returns how much that was. */
static uint64_t look(int fd, uint64_t *last)
{
	static uint64_t head[BATCH];
	static struct iovec iov[BATCH];
	static struct mmsghdr msgs[BATCH];
	uint64_t count = 0;
	for (;;) {
		for (int i = 0; i < BATCH; i++) {
			iov[i] = (struct iovec){ &head[i], sizeof head[i] }; /* the rest of a datagram is cut off */
			msgs[i].msg_hdr = (struct msghdr){ .msg_iov = &iov[i], .msg_iovlen = 1 };
		}
		int n = recvmmsg(fd, msgs, BATCH, MSG_DONTWAIT, NULL);
		if (n < 0) {
			if (errno == EAGAIN || errno == EINTR) return count;
			die("recvmmsg");
		}
		int64_t at = now();
		for (int i = 0; i < n; i++) {
			uint64_t number = head[i];
			if (number >= NUMBERS) continue;
			unsigned char bit = 1 << (number & 7);
			if (seen[number / 8] & bit) { duplicates++; continue; }
			seen[number / 8] |= bit;
			received++;
			if (number < *last) reordered++; else *last = number;
			if (at >= steady_from && at < steady_to) steady++;
		}
		count += n;
		if (n < BATCH) return count;
	}
}

static void *receive(void *unused)
{
	(void)unused;
	static uint64_t last[FLOWS]; /* order is within a flow */
	prctl(PR_SET_TIMERSLACK, 1UL);
	int64_t heard = now();
	for (;;) {
		uint64_t count = 0;
		for (int i = 0; i < flows; i++) count += look(rx[i], &last[i]);
		int64_t t = now(), ended = sending_ended;
		if (count) heard = t;
		if (ended && (t - ended > DRAIN_NS || (t - heard > QUIET_NS && t - ended > QUIET_NS))) return NULL;
		pause_until(t + LOOK_NS);
	}
}

static void read_targets(const char *file)
{
	char line[64];
	FILE *f = fopen(file, "r");
	if (!f) die(file);
	while (targets < TARGETS && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		to[targets].ipv4 = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(DISCARD) };
		if (!inet_aton(line, &to[targets].ipv4.sin_addr)) { fprintf(stderr, "%s: no address: %s\n", file, line); exit(2); }
		targets++;
	}
	fclose(f);
}

static void ask_targets(char *list)
{
	int buffer = RCVBUF;
	for (char *word = strtok(list, ","); word && flows < FLOWS; word = strtok(NULL, ",")) {
		to_len = sizeof to[0];
		rx[flows] = atoi(word);
		if (getsockname(rx[flows], &to[flows].any, &to_len)) die("getsockname");
		if (setsockopt(rx[flows], SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer) &&
		    setsockopt(rx[flows], SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer)) die("SO_RCVBUF");
		flows++;
	}
	targets = flows;
}

int main(int argc, char **argv)
{
	if (argc != 6) { fprintf(stderr, "usage: udpflood TX RX[,RX...]|@FILE SIZE RATE SECONDS\n"); return 2; }
	tx = atoi(argv[1]);
	if (argv[2][0] == '@') read_targets(argv[2] + 1); else ask_targets(argv[2]);
	size = strtoul(argv[3], NULL, 10);
	double rate = atof(argv[4]), seconds = atof(argv[5]);
	if (!targets || size < 8 || size > 65507 || rate < 0 || seconds <= 0) { fprintf(stderr, "bad arguments\n"); return 2; }

	if (targets == 1 && connect(tx, &to[0].any, to_len)) die("connect");
	prctl(PR_SET_TIMERSLACK, 1UL);

	static char data[BATCH][65536];
	static struct iovec iov[BATCH];
	static struct mmsghdr msgs[BATCH];
	for (int i = 0; i < BATCH; i++) {
		iov[i] = (struct iovec){ data[i], size };
		msgs[i].msg_hdr.msg_iov = &iov[i];
		msgs[i].msg_hdr.msg_iovlen = 1;
	}

	begun = now();
	int64_t end = begun + (int64_t)(seconds * 1e9);
	steady_from = begun + (end - begun) / 5;
	steady_to = end;
	pthread_t receiver;
	if (flows && pthread_create(&receiver, NULL, receive, NULL)) die("pthread_create");

	uint64_t sent = 0;
	double lag = 0; /* datagrams that a sender which fell behind leaves out */
	for (int64_t t = begun; t < end; t = now()) {
		int64_t due = BATCH;
		if (rate > 0) {
			double owed = (t - begun) * rate / 1e9 - lag - sent, most = rate * CATCH_UP_NS / 1e9 + 1;
			if (owed > most) { lag += owed - most; owed = most; }
			if (owed < 1) { pause_until(t + TICK_NS); continue; }
			due = owed < BATCH ? (int64_t)owed : BATCH;
		}
		for (int i = 0; i < due; i++) {
			uint64_t number = sent + i;
			memcpy(data[i], &number, sizeof number);
			if (targets > 1) {
				msgs[i].msg_hdr.msg_name = &to[number % targets];
				msgs[i].msg_hdr.msg_namelen = to_len;
			}
		}
		int n = sendmmsg(tx, msgs, due, 0);
		if (n < 0) {
			/* A full queue of the interface: that datagram is lost like any other. */
			if (errno != ENOBUFS && errno != EAGAIN && errno != EINTR && errno != ECONNREFUSED) die("sendmmsg");
			n = 1;
		}
		sent += n;
		if (sent + BATCH >= NUMBERS) break;
	}
	int64_t stopped = now();
	sending_ended = stopped;
	if (flows) pthread_join(receiver, NULL);
	printf("{\"sent\": %llu, \"send_s\": %.6f, \"received\": %llu, \"duplicates\": %llu, \"reordered\": %llu,"
	       " \"steady\": %llu, \"steady_s\": %.6f}\n",
	       (unsigned long long)sent, (stopped - begun) / 1e9, (unsigned long long)received,
	       (unsigned long long)duplicates, (unsigned long long)reordered, (unsigned long long)steady,
	       (steady_to - steady_from) / 1e9);
}
