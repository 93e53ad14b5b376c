/* The ceiling: answers every request with one file, by sendfile, and does nothing else.
 *
 * sendfile PORT FILE
 *
 * One thread, epoll, connections that stay open. It looks for the empty line that ends a request and at nothing
 * before it: no method, no address, no body, no Range. No server that does can be expected to be faster.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_EVENTS = 256, MOST_CONNECTIONS = 65536 };

struct connection {
    int open, sending, waits_to_write;
    int newlines; /* how much of "\r\n\r\n" has been seen */
    size_t head_sent;
    off_t file_sent;
};

static struct connection connections[MOST_CONNECTIONS];
static char head[256];
static size_t head_length;
static off_t file_length;
static int file, poller;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int fd, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0) fail("epoll_ctl");
}

static void hang_up(int fd) {
    connections[fd].open = 0;
    close(fd);
}

/* Send what the socket takes. Returns 0 if the connection is gone. */
static int answer(int fd) {
    struct connection *c = &connections[fd];
    while (c->head_sent < head_length) {
        ssize_t sent = send(fd, head + c->head_sent, head_length - c->head_sent, MSG_MORE | MSG_NOSIGNAL);
        if (sent < 0) return errno == EAGAIN;
        c->head_sent += (size_t)sent;
    }
    while (c->file_sent < file_length) {
        ssize_t sent = sendfile(fd, file, &c->file_sent, (size_t)(file_length - c->file_sent));
        if (sent < 0) return errno == EAGAIN;
        if (sent == 0) return 0;
    }
    c->sending = 0;
    return 1;
}

/* Look for the end of a request; a client asks for one thing at a time. */
static int asked(struct connection *c, const char *text, ssize_t length) {
    for (ssize_t i = 0; i < length; i++) {
        c->newlines = text[i] == "\r\n\r\n"[c->newlines] ? c->newlines + 1 : text[i] == '\r';
        if (c->newlines == 4) {
            c->newlines = 0;
            return 1;
        }
    }
    return 0;
}

static void serve(int fd, unsigned events) {
    struct connection *c = &connections[fd];
    char text[16384];
    if (events & EPOLLIN) {
        ssize_t length = recv(fd, text, sizeof text, 0);
        if (length == 0 || (length < 0 && errno != EAGAIN)) return hang_up(fd);
        if (length > 0 && !c->sending && asked(c, text, length)) {
            c->sending = 1;
            c->head_sent = 0;
            c->file_sent = 0;
        }
    }
    if (c->sending && !answer(fd)) return hang_up(fd);
    if (c->sending != c->waits_to_write) {
        c->waits_to_write = c->sending;
        watch(fd, EPOLL_CTL_MOD, EPOLLIN | (c->sending ? EPOLLOUT : 0));
    }
}

int main(int count, char **words) {
    if (count != 3) {
        fprintf(stderr, "usage: sendfile PORT FILE\n");
        return 2;
    }
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    most.rlim_cur = most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    signal(SIGPIPE, SIG_IGN);

    struct stat facts;
    if ((file = open(words[2], O_RDONLY | O_CLOEXEC)) < 0 || fstat(file, &facts) < 0) fail(words[2]);
    file_length = facts.st_size;
    head_length = (size_t)snprintf(
        head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: %lld\r\n\r\n",
        (long long)file_length);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), yes = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4096) < 0) fail("listen");
    poller = epoll_create1(0);
    watch(listener, EPOLL_CTL_ADD, EPOLLIN);

    for (;;) {
        struct epoll_event events[MOST_EVENTS];
        int ready = epoll_wait(poller, events, MOST_EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (connections[fd].open) serve(fd, events[i].events);
                continue;
            }
            int accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (accepted < 0) continue;
            if (accepted >= MOST_CONNECTIONS) {
                close(accepted);
                continue;
            }
            setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            connections[accepted] = (struct connection){.open = 1};
            watch(accepted, EPOLL_CTL_ADD, EPOLLIN);
        }
    }
}
