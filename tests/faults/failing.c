/* Lets one change of the file system under a folder fail, for tests: preload it.

   FAILING_UNDER   the folder
   FAILING_COUNT   a file of 8 bytes that counts the changes
   FAILING_AT      the number of the change that fails; 0: none does
   FAILING_FOREVER 1: all after it fail too
   FAILING_ERRNO   why
   FAILING_SLOW    microseconds that each change takes

   Lets the time of day jump, too:

   JUMP_AFTER      seconds from the first look at the clock to the jump
   JUMP_BY         seconds that it jumps, backwards if negative */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_ulong *counter(void) {
  static atomic_ulong *shared;
  const char *file = getenv("FAILING_COUNT");
  if (shared == NULL && file != NULL) {
    int (*opens)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = opens(file, O_RDWR);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
  }
  return shared;
}

static int fails(const char *path) {
  const char *under = getenv("FAILING_UNDER"), *at = getenv("FAILING_AT");
  if (under == NULL || at == NULL || path == NULL || strncmp(path, under, strlen(under)) != 0)
    return 0;
  const char *slow = getenv("FAILING_SLOW");
  if (slow != NULL) usleep(atol(slow));
  unsigned long number = atomic_fetch_add(counter(), 1) + 1, first = strtoul(at, NULL, 10);
  const char *forever = getenv("FAILING_FOREVER"), *reason = getenv("FAILING_ERRNO");
  if (first == 0 || number < first || (number > first && (forever == NULL || *forever != '1')))
    return 0;
  errno = reason == NULL ? ENOSPC : atoi(reason);
  return 1;
}

static int fd_fails(int fd) {
  char link[64], path[PATH_MAX + 1];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(path);
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
  if (fd_fails(fd)) return -1;
  return NEXT(ssize_t, write, int, const void *, size_t)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  if (fd_fails(fd)) return -1;
  return NEXT(ssize_t, pwrite, int, const void *, size_t, off_t)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
  if (fd_fails(fd)) return -1;
  return NEXT(ssize_t, pwrite64, int, const void *, size_t, off_t)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (fd_fails(fd)) return -1;
  return NEXT(ssize_t, writev, int, const struct iovec *, int)(fd, parts, count);
}
int fsync(int fd) {
  if (fd_fails(fd)) return -1;
  return NEXT(int, fsync, int)(fd);
}
int rename(const char *old, const char *new) {
  if (fails(new)) return -1;
  return NEXT(int, rename, const char *, const char *)(old, new);
}
int mkdir(const char *path, mode_t mode) {
  if (fails(path)) return -1;
  return NEXT(int, mkdir, const char *, mode_t)(path, mode);
}

#define OPEN(name)                                              \
  int name(const char *path, int flags, ...) {                  \
    va_list rest;                                               \
    va_start(rest, flags);                                      \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;   \
    va_end(rest);                                               \
    if ((flags & O_CREAT) && fails(path)) return -1;            \
    return NEXT(int, name, const char *, int, ...)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

/* Seconds that are added to the time of day; steady clocks are as they were. */
static long jump(void) {
  static long start = 0;
  const char *after = getenv("JUMP_AFTER"), *by = getenv("JUMP_BY");
  if (after == NULL || by == NULL) return 0;
  struct timespec now;
  NEXT(int, clock_gettime, clockid_t, struct timespec *)(CLOCK_MONOTONIC, &now);
  if (start == 0) start = now.tv_sec;
  return now.tv_sec - start >= atol(after) ? atol(by) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = NEXT(int, clock_gettime, clockid_t, struct timespec *)(clock, now);
  if (failed == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += jump();
  return failed;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out != NULL) *out = now.tv_sec;
  return now.tv_sec;
}
