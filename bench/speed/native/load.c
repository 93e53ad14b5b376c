/* Asks over connections that stay open, reads 256 KB at a time, and tells what it saw as one line of JSON.
 *
 * load PORT CONNECTIONS SECONDS RATE REQUESTS [discard]
 *
 * REQUESTS is a file: each request as it goes over the wire, behind its length (32 bits, little-endian). They are asked
 * in turn. With RATE 0 every connection asks again when it is answered (closed loop). With a RATE, requests are due at
 * even intervals whether or not anybody is ready; a latency counts from when its request was due (open loop), so that
 * what queues is seen. What was due and is not answered 5 s after the end counts as broken. With `discard`, bodies are
 * thrown away in the kernel: a reader that copies can be full before a server of large answers is.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 256 * 1024, MOST_HEAD = 16384, MOST_EVENTS = 512 };
static const int64_t DRAIN_NS = 5000000000;

struct request {
    const char *text;
    uint32_t length;
};

struct connection {
    int fd, busy, waits_to_write;
    const struct request *request;
    uint32_t sent;
    int64_t due;
    int in_body, status;
    int64_t body_left;
    size_t head_length;
    char head[MOST_HEAD];
};

static struct request *requests;
static size_t request_count, next_request;
static struct connection *connections;
static int *idle, idle_count, connection_count;
static struct sockaddr_in address;
static int poller, discards;

static uint32_t *latencies; /* microseconds */
static size_t latency_count, latency_room;
static int64_t answers, refused, broken, received;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->waits_to_write ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poller, operation, c->fd, &event) < 0) fail("epoll_ctl");
}

static void connect_to_server(struct connection *c) {
    int yes = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    c->busy = c->in_body = c->waits_to_write = 0;
    c->head_length = 0;
    watch(c, EPOLL_CTL_ADD);
}

static void rest(struct connection *c) {
    c->busy = 0;
    idle[idle_count++] = (int)(c - connections);
}

static void start_again(struct connection *c) {
    int was_busy = c->busy;
    broken += was_busy;
    close(c->fd);
    connect_to_server(c);
    if (was_busy) rest(c);
}

static void write_request(struct connection *c) {
    while (c->sent < c->request->length) {
        ssize_t sent = send(c->fd, c->request->text + c->sent, c->request->length - c->sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return start_again(c);
            break;
        }
        c->sent += (uint32_t)sent;
    }
    int unsent = c->sent < c->request->length;
    if (unsent != c->waits_to_write) {
        c->waits_to_write = unsent;
        watch(c, EPOLL_CTL_MOD);
    }
}

static void ask(struct connection *c, int64_t due) {
    c->request = &requests[next_request];
    next_request = (next_request + 1) % request_count;
    c->sent = 0;
    c->busy = 1;
    c->due = due;
    write_request(c);
}

static void answered(struct connection *c) {
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 20;
        if (!(latencies = realloc(latencies, latency_room * sizeof *latencies))) fail("realloc");
    }
    int64_t took = (now() - c->due) / 1000;
    latencies[latency_count++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
    answers++;
    refused += c->status >= 400;
    c->in_body = 0;
    c->head_length = 0;
    rest(c);
}

/* The length of the body that follows a head; -1 if it is not told. The head ends with a zero byte. */
static int64_t body_length(const char *head) {
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, "content-length:", 15)) return atoll(line + 17);
    return -1;
}

/* Returns 0 if what came cannot be understood. */
static int take(struct connection *c, const char *text, size_t length) {
    received += (int64_t)length;
    if (!c->in_body) {
        size_t fits = MOST_HEAD - 1 - c->head_length, taken = length < fits ? length : fits;
        memcpy(c->head + c->head_length, text, taken);
        char *end = memmem(c->head, c->head_length + taken, "\r\n\r\n", 4);
        if (!end) {
            c->head_length += taken;
            return c->head_length < MOST_HEAD - 1;
        }
        size_t head_bytes = (size_t)(end - c->head) + 4 - c->head_length;
        end[4] = '\0';
        c->status = atoi(c->head + strlen("HTTP/1.1 "));
        c->body_left = body_length(c->head);
        if (c->body_left < 0) return 0;
        c->in_body = 1;
        length -= head_bytes;
    }
    c->body_left -= (int64_t)length;
    if (c->body_left == 0) answered(c);
    return c->body_left >= 0;
}

static void hear(struct connection *c) {
    static char text[READ_BYTES];
    ssize_t length = recv(c->fd, text, sizeof text, discards && c->in_body ? MSG_TRUNC : 0);
    if (length < 0 && errno == EAGAIN) return;
    if (length <= 0 || !c->busy || !take(c, text, (size_t)length)) start_again(c);
}

static void read_requests(const char *path) {
    struct stat facts;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &facts) < 0) fail(path);
    char *text = malloc((size_t)facts.st_size), *end = text + facts.st_size;
    if (!text || read(file, text, (size_t)facts.st_size) != facts.st_size) fail(path);
    while (text < end) {
        uint32_t length;
        memcpy(&length, text, sizeof length);
        requests = realloc(requests, (request_count + 1) * sizeof *requests);
        if (!requests) fail("realloc");
        requests[request_count++] = (struct request){text + sizeof length, length};
        text += sizeof length + length;
    }
}

static int by_size(const void *one, const void *other) {
    uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;
    return (a > b) - (a < b);
}

static uint32_t percentile(double share) {
    return latency_count ? latencies[(size_t)((double)(latency_count - 1) * share)] : 0;
}

int main(int count, char **words) {
    if (count != 6 && !(count == 7 && !strcmp(words[6], "discard"))) {
        fprintf(stderr, "usage: load PORT CONNECTIONS SECONDS RATE REQUESTS [discard]\n");
        return 2;
    }
    discards = count == 7;
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    address = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connection_count = atoi(words[2]);
    double rate = atof(words[4]);
    read_requests(words[5]);
    connections = calloc((size_t)connection_count, sizeof *connections);
    idle = calloc((size_t)connection_count, sizeof *idle);
    if (!connections || !idle || !request_count) fail("nothing to ask, or no memory");
    poller = epoll_create1(0);
    for (int i = 0; i < connection_count; i++) {
        connect_to_server(&connections[i]);
        rest(&connections[i]);
    }

    double seconds = atof(words[3]);
    int64_t began = now(), ends = began + (int64_t)(seconds * 1e9), time = began;
    int64_t all = (int64_t)(rate * seconds), asked = 0, most_behind = 0;
    for (; time < ends || (answers + broken < all && time < ends + DRAIN_NS); time = now()) {
        if (rate > 0) {
            /* Each keeps the moment at which it was due, also when it has to wait for a connection. */
            int64_t due = (int64_t)((double)(time - began) / 1e9 * rate) + 1;
            if (due > all) due = all;
            while (idle_count && asked < due)
                ask(&connections[idle[--idle_count]], began + (int64_t)((double)asked++ / rate * 1e9));
            if (due - asked > most_behind) most_behind = due - asked;
        } else {
            while (idle_count) ask(&connections[idle[--idle_count]], now());
        }
        struct epoll_event events[MOST_EVENTS];
        /* With a rate it looks without a pause: a wait is rounded to milliseconds. */
        int ready = epoll_wait(poller, events, MOST_EVENTS, rate > 0 ? 0 : 100);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT && c->waits_to_write) write_request(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                hear(c);
                if (rate == 0 && idle_count) ask(&connections[idle[--idle_count]], now());
            }
        }
    }
    if (rate > 0) broken = all - answers;
    int64_t elapsed = (rate > 0 ? ends : time) - began;
    qsort(latencies, latency_count, sizeof *latencies, by_size);
    printf(
        "told {\"answers\": %lld, \"refused\": %lld, \"broken\": %lld, \"bytes\": %lld, \"microseconds\": %lld, "
        "\"p50\": %u, \"p99\": %u, \"behind\": %lld}\n",
        (long long)answers, (long long)refused, (long long)broken, (long long)received, (long long)(elapsed / 1000),
        percentile(0.5), percentile(0.99), (long long)most_behind);
    return 0;
}
