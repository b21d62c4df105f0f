/* A stretch of road: what the kernel routes into a TUN interface comes back out of it later, or not at all.
 *
 *     road NAME SERVER DELAY_MS LOSS_PERCENT BURST RATE_MBIT_S QUEUE_BYTES SEED
 *
 * Packets to the IPv4 address SERVER go up, all others down. Each way has a link of its own: RATE_MBIT_S, with a queue
 * of QUEUE_BYTES that drops at its tail; then the wire, where a packet is lost with a probability of LOSS_PERCENT and
 * takes DELAY_MS. Whole IP packets are lost, as on a real path: never bytes of a stream. BURST is the mean number of
 * packets that are lost one after the other: 1 makes losses independent; more is Gilbert's model of two states.
 *
 * Prints "ready" once the interface is up. At SIGTERM it prints one line of JSON and ends: packets that came, those
 * lost on the wire, those dropped at the queue's tail, those that the kernel did not take back, and those that came out
 * more than 2 ms late, because the machine was busy.
 *
 * The TUN has no offloads, so the kernel cuts what it forwards into packets of the MTU before they get here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL
#define ETHERNET 14 /* what a packet has more on the wire, as tc's shapers count it */
#define LATE 2000000 /* ns: a packet that comes out later than this is counted */
#define TURN 64     /* packets read before those that are due are written */

struct packet {
	struct packet *next;
	int64_t due;
	int length;
	unsigned char data[];
};

struct way {
	struct packet *first, **last;
	int64_t free_at; /* when the link has sent what it has taken */
	int losing;      /* within a burst of losses */
	unsigned long packets, lost, overflow, refused, late;
};

static struct way ways[2];
static int64_t delay_ns, queue_bytes;
static double ns_per_byte, begin_loss, go_on_losing;
static uint64_t state;
static volatile sig_atomic_t stop;

static void on_term(int signal_number) { (void)signal_number; stop = 1; }

static void die(const char *what) { perror(what); exit(1); }

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * NS + t.tv_nsec;
}

/* xorshift64*: Vigna, 2016. Uniform in [0, 1). */
static double uniform(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return (double)((state * 0x2545F4914F6CDD1DULL) >> 11) / 9007199254740992.0;
}

static int is_lost(struct way *way)
{
	way->losing = uniform() < (way->losing ? go_on_losing : begin_loss);
	return way->losing;
}

static void take(struct way *way, const unsigned char *data, int length)
{
	int64_t now = now_ns(), begin = way->free_at > now ? way->free_at : now;
	way->packets++;
	if ((double)(begin - now) > (double)queue_bytes * ns_per_byte) {
		way->overflow++;
		return;
	}
	way->free_at = begin + (int64_t)((length + ETHERNET) * ns_per_byte);
	if (is_lost(way)) { /* it has used the link */
		way->lost++;
		return;
	}
	struct packet *packet = malloc(sizeof *packet + (size_t)length);
	if (!packet) die("malloc");
	packet->next = NULL;
	packet->due = way->free_at + delay_ns;
	packet->length = length;
	memcpy(packet->data, data, (size_t)length);
	*way->last = packet;
	way->last = &packet->next;
}

static void deliver(int fd, struct way *way, int64_t now)
{
	struct packet *packet;
	while ((packet = way->first) && packet->due <= now) {
		if (now - packet->due > LATE) way->late++;
		if (write(fd, packet->data, (size_t)packet->length) < 0) way->refused++;
		way->first = packet->next;
		if (!way->first) way->last = &way->first;
		free(packet);
	}
}

static int open_tun(const char *name)
{
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0) die("/dev/net/tun");
	struct ifreq request = { .ifr_flags = IFF_TUN | IFF_NO_PI };
	snprintf(request.ifr_name, sizeof request.ifr_name, "%s", name);
	if (ioctl(fd, TUNSETIFF, &request)) die("TUNSETIFF");
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0) die("socket");
	/* Packets wait in our queue, whose length is known, and not in the device's. */
	request.ifr_qlen = 10000;
	if (ioctl(sock, SIOCSIFTXQLEN, &request)) die("SIOCSIFTXQLEN");
	if (ioctl(sock, SIOCGIFFLAGS, &request)) die("SIOCGIFFLAGS");
	request.ifr_flags |= IFF_UP;
	if (ioctl(sock, SIOCSIFFLAGS, &request)) die("SIOCSIFFLAGS");
	close(sock);
	return fd;
}

int main(int argc, char **argv)
{
	unsigned char data[65536];
	struct in_addr server;
	if (argc != 9 || !inet_aton(argv[2], &server)) {
		fprintf(stderr, "usage: road NAME SERVER DELAY_MS LOSS_PERCENT BURST RATE_MBIT_S QUEUE_BYTES SEED\n");
		return 2;
	}
	delay_ns = (int64_t)(atof(argv[3]) * 1e6);
	double loss = atof(argv[4]) / 100, burst = atof(argv[5]);
	go_on_losing = burst > 1 ? 1 - 1 / burst : loss;
	/* Gilbert's share of the losing state is begin / (begin + 1 - go_on): solved for begin. */
	begin_loss = burst > 1 ? loss / burst / (1 - loss) : loss;
	ns_per_byte = 8e3 / atof(argv[6]);
	queue_bytes = atoll(argv[7]);
	state = strtoull(argv[8], NULL, 10) * 0x9E3779B97F4A7C15ULL + 1;
	for (int i = 0; i < 2; i++) ways[i].last = &ways[i].first;

	struct sigaction action = { .sa_handler = on_term };
	sigset_t term, none;
	sigemptyset(&none);
	sigemptyset(&term);
	sigaddset(&term, SIGTERM);
	/* Blocked but in ppoll, so that it is never missed. */
	if (sigprocmask(SIG_BLOCK, &term, NULL) || sigaction(SIGTERM, &action, NULL)) die("signals");
	int fd = open_tun(argv[1]);
	if (setpriority(PRIO_PROCESS, 0, -10)) perror("road goes on with its own priority");
	printf("ready\n");
	fflush(stdout);

	while (!stop) {
		int64_t due = INT64_MAX, now = now_ns();
		for (int i = 0; i < 2; i++)
			if (ways[i].first && ways[i].first->due < due) due = ways[i].first->due;
		int64_t wait = due > now ? due - now : 0;
		struct timespec timeout = { wait / NS, wait % NS };
		struct pollfd readable = { .fd = fd, .events = POLLIN };
		if (ppoll(&readable, 1, due == INT64_MAX ? NULL : &timeout, &none) < 0 && errno != EINTR) die("ppoll");
		for (int i = 0; i < TURN; i++) {
			ssize_t length = read(fd, data, sizeof data);
			if (length < 0) {
				if (errno != EAGAIN && errno != EINTR) die("read");
				break;
			}
			if (length >= 20 && data[0] >> 4 == 4) /* the kernel's own IPv6 chatter goes nowhere */
				take(&ways[memcmp(data + 16, &server, 4) ? 1 : 0], data, (int)length);
		}
		now = now_ns();
		for (int i = 0; i < 2; i++) deliver(fd, &ways[i], now);
	}
	printf("{");
	for (int i = 0; i < 2; i++)
		printf("%s\"%s\": {\"packets\": %lu, \"lost\": %lu, \"overflow\": %lu, \"refused\": %lu, \"late\": %lu}", i ? ", " : "",
		       i ? "down" : "up", ways[i].packets, ways[i].lost, ways[i].overflow, ways[i].refused, ways[i].late);
	printf("}\n");
	return 0;
}
