/* Intercepts the file calls of a process (LD_PRELOAD) on the files of one folder, which POWERCUT_FOLDER names.
 *
 * With POWERCUT_LOG it records writes, truncations, syncs and removals, in order. An event is a line
 * "<op> <offset> <length> <name>\n"; the bytes of a write follow the line. Each event is appended by one writev, so
 * another process may append lines of its own, and the lines stand in the order of the events. A sync has an event
 * when it begins and another when it ends. Writes through mmap are not seen. SQLite uses mmap only for its -shm file,
 * which is worthless after a power cut.
 *
 * With POWERCUT_FAULT, a file of five 32-bit numbers that a test writes, calls fail. The numbers are: after how many
 * calls (0: never), with which errno, whether all later calls fail too, how many have failed, and which calls count
 * (1: writes, 2: syncs, 4: reads, 8: the lock of SQLite's writer). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096
static char *names[FDS];
static int log_fd = -1;
static int watches;
static const char *folder;
static volatile int *fault;
enum { CALLS, ERROR, STAYS, FAILED, COUNTED, NUMBERS };
enum { WRITES = 1, SYNCS = 2, READS = 4, LOCKS = 8 };
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

__attribute__((constructor)) static void begin(void) {
  const char *log = getenv("POWERCUT_LOG");
  const char *faults = getenv("POWERCUT_FAULT");
  folder = getenv("POWERCUT_FOLDER");
  if (!folder) return;
  if (log) log_fd = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (faults) {
    int fd = REAL(open)(faults, O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, NUMBERS * sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || shared == MAP_FAILED) abort();
    REAL(close)(fd);
    fault = shared;
  }
  watches = 1;
}

/* Whether this call must fail. */
static int fails(int kind) {
  if (!fault || fault[CALLS] <= 0 || !(fault[COUNTED] & kind)) return 0;
  if (__sync_sub_and_fetch(&fault[CALLS], 1) > 0) return 0;
  __sync_add_and_fetch(&fault[FAILED], 1);
  if (fault[STAYS]) fault[CALLS] = 1;
  errno = fault[ERROR];
  return 1;
}

/* The path relative to the folder, or NULL if it is outside. */
static const char *within(const char *path) {
  size_t length = folder ? strlen(folder) : 0;
  if (!watches || !path || strncmp(path, folder, length) || path[length] != '/') return NULL;
  return path + length + 1;
}

static void record(char op, long long offset, const char *name, const void *bytes, size_t length) {
  if (log_fd < 0) return;
  char head[512];
  int head_length = snprintf(head, sizeof head, "%c %lld %zu %s\n", op, offset, length, name);
  struct iovec parts[2] = {{head, (size_t)head_length}, {(void *)bytes, length}};
  if (REAL(writev)(log_fd, parts, length ? 2 : 1) != (ssize_t)(head_length + length)) abort();
}

static void opened(int fd, const char *path, int flags) {
  const char *name = within(path);
  if (fd < 0 || fd >= FDS || !name) return;
  pthread_mutex_lock(&turn);
  free(names[fd]);
  names[fd] = strdup(name);
  if (flags & O_TRUNC) record('t', 0, name, NULL, 0);
  pthread_mutex_unlock(&turn);
}

static const char *of(int fd) { return fd >= 0 && fd < FDS && watches ? names[fd] : NULL; }

#define OPEN(name)                                     \
  int name(const char *path, int flags, ...) {         \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode_t mode = flags & O_CREAT ? va_arg(more, int) : 0; \
    va_end(more);                                      \
    int fd = REAL(name)(path, flags, mode);            \
    opened(fd, path, flags);                           \
    return fd;                                         \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                   \
  int name(int at, const char *path, int flags, ...) { \
    va_list more;                                      \
    va_start(more, flags);                             \
    mode_t mode = flags & O_CREAT ? va_arg(more, int) : 0; \
    va_end(more);                                      \
    int fd = REAL(name)(at, path, flags, mode);        \
    opened(fd, path, flags);                           \
    return fd;                                         \
  }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
  if (of(fd)) {
    pthread_mutex_lock(&turn);
    free(names[fd]);
    names[fd] = NULL;
    pthread_mutex_unlock(&turn);
  }
  return REAL(close)(fd);
}

/* The lock is held from the call to its record: otherwise the events of two threads could be recorded out of order. */
#define STEP(fd, call, op, offset, bytes, length)       \
  if (!of(fd)) return call;                             \
  if (fails(WRITES)) return -1;                         \
  pthread_mutex_lock(&turn);                            \
  ssize_t done = call;                                  \
  if (done >= 0) record(op, offset, names[fd], bytes, length); \
  pthread_mutex_unlock(&turn);                          \
  return done;

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
  STEP(fd, REAL(pwrite)(fd, bytes, length, at), 'w', (long long)at, bytes, (size_t)done)
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
  STEP(fd, REAL(pwrite64)(fd, bytes, length, at), 'w', (long long)at, bytes, (size_t)done)
}
ssize_t write(int fd, const void *bytes, size_t length) {
  STEP(fd, REAL(write)(fd, bytes, length), 'w', (long long)(lseek(fd, 0, SEEK_CUR) - done), bytes, (size_t)done)
}
int ftruncate(int fd, off_t length) { STEP(fd, REAL(ftruncate)(fd, length), 't', (long long)length, NULL, 0) }
int ftruncate64(int fd, off64_t length) { STEP(fd, REAL(ftruncate64)(fd, length), 't', (long long)length, NULL, 0) }

/* Other threads may write during a sync: only what was written before it began counts as synced. */
#define SYNC(name)                                      \
  int name(int fd) {                                    \
    if (!of(fd)) return REAL(name)(fd);                 \
    if (fails(SYNCS)) return -1;                        \
    pthread_mutex_lock(&turn);                          \
    record('b', 0, names[fd], NULL, 0);                 \
    pthread_mutex_unlock(&turn);                        \
    int done = REAL(name)(fd);                          \
    pthread_mutex_lock(&turn);                          \
    if (done == 0 && names[fd]) record('s', 0, names[fd], NULL, 0); \
    pthread_mutex_unlock(&turn);                        \
    return done;                                        \
  }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
  int done = REAL(unlink)(path);
  if (done == 0 && within(path)) record('u', 0, within(path), NULL, 0);
  return done;
}

ssize_t pread(int fd, void *bytes, size_t length, off_t at) {
  if (of(fd) && fails(READS)) return -1;
  return REAL(pread)(fd, bytes, length, at);
}
ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) {
  if (of(fd) && fails(READS)) return -1;
  return REAL(pread64)(fd, bytes, length, at);
}

/* The byte of the shared-memory file that a writer locks for its transaction; see "WAL-mode file format". */
enum { WRITER = 120 };

#define FCNTL(name)                                                        \
  int name(int fd, int command, ...) {                                     \
    va_list more;                                                          \
    va_start(more, command);                                               \
    void *argument = va_arg(more, void *);                                 \
    va_end(more);                                                          \
    if (command == F_SETLK && of(fd)) {                                    \
      const struct flock *lock = argument;                                 \
      int writes = lock->l_type == F_WRLCK && lock->l_start == WRITER;     \
      if (writes && strstr(of(fd), "-shm") && fails(LOCKS)) return -1;     \
    }                                                                      \
    return REAL(name)(fd, command, argument);                              \
  }
FCNTL(fcntl)
FCNTL(fcntl64)
