/* Makes the N-th call of some kinds on files below a folder fail, or all from the N-th on: loaded by LD_PRELOAD.

   SOAK_FOLDER: absolute, without links.  SOAK_CALLS: letters of KINDS.  SOAK_COUNT: a file of 64 bytes, shared by all
   processes: calls so far of each of KINDS, of SOAK_CALLS, and faults so far.  SOAK_NTH: 1 is the first, 0 none.
   SOAK_LASTING: 1: all that follow, too.  SOAK_ERROR: errno; 0: a write takes half of its bytes, other calls go well. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define KINDS "oiwsrt" /* open for writing, read, write, sync, rename, truncate */
enum { OPEN, READ, WRITE, SYNC, RENAME, CUT, CHOSEN, FAULTS, BYTES = 64 };

static const char *folder, *calls;
static uint64_t nth, *count;
static int lasting, error;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SOAK_COUNT");
    if (!path || !getenv("SOAK_FOLDER")) return;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void *found = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (found == MAP_FAILED) return;
    calls = getenv("SOAK_CALLS");
    nth = strtoull(getenv("SOAK_NTH"), NULL, 10);
    lasting = atoi(getenv("SOAK_LASTING"));
    error = atoi(getenv("SOAK_ERROR"));
    folder = getenv("SOAK_FOLDER");
    count = found;
}

static int below(const char *path) {
    size_t length = strlen(folder);
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int named(const char *path) {
    char whole[PATH_MAX];
    if (path[0] == '/') return below(path);
    if (!getcwd(whole, sizeof whole)) return 0;
    return below(whole);
}

static int held(int file) {
    char link[40], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

/* Whether this call is one that fails. */
static int fails(int kind, int here) {
    if (!here) return 0;
    __atomic_add_fetch(&count[kind], 1, __ATOMIC_SEQ_CST);
    if (!strchr(calls, KINDS[kind])) return 0;
    uint64_t number = __atomic_add_fetch(&count[CHOSEN], 1, __ATOMIC_SEQ_CST);
    if (!nth || number < nth || (number > nth && !lasting)) return 0;
    __atomic_add_fetch(&count[FAULTS], 1, __ATOMIC_SEQ_CST);
    return 1;
}

#define FIND(name) \
    if (!real) real = (__typeof__(real))dlsym(RTLD_NEXT, #name)
#define MIND(kind, here)                       \
    if (count && fails(kind, here) && error) { \
        errno = error;                         \
        return -1;                             \
    }
#define MODE ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE)

#define OPENER(name)                                             \
    int name(const char *path, int flags, ...) {                 \
        static int (*real)(const char *, int, ...);              \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode_t mode = MODE ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                            \
        if (flags & (O_WRONLY | O_RDWR)) MIND(OPEN, named(path)) \
        FIND(name);                                              \
        return real(path, flags, mode);                          \
    }
#define OPENER_AT(name)                                          \
    int name(int at, const char *path, int flags, ...) {         \
        static int (*real)(int, const char *, int, ...);         \
        va_list rest;                                            \
        va_start(rest, flags);                                   \
        mode_t mode = MODE ? va_arg(rest, mode_t) : 0;           \
        va_end(rest);                                            \
        if (flags & (O_WRONLY | O_RDWR)) MIND(OPEN, named(path)) \
        FIND(name);                                              \
        return real(at, path, flags, mode);                      \
    }
OPENER(open)
OPENER(open64)
OPENER_AT(openat)
OPENER_AT(openat64)

ssize_t read(int file, void *data, size_t size) {
    static ssize_t (*real)(int, void *, size_t);
    MIND(READ, held(file))
    FIND(read);
    return real(file, data, size);
}

ssize_t write(int file, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (count && fails(WRITE, held(file))) {
        if (error) {
            errno = error;
            return -1;
        }
        size = size > 1 ? size / 2 : size;
    }
    FIND(write);
    return real(file, data, size);
}

int fsync(int file) {
    static int (*real)(int);
    MIND(SYNC, held(file))
    FIND(fsync);
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    MIND(SYNC, held(file))
    FIND(fdatasync);
    return real(file);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    MIND(RENAME, named(to))
    FIND(rename);
    return real(from, to);
}

int renameat(int at, const char *from, int into, const char *to) {
    static int (*real)(int, const char *, int, const char *);
    MIND(RENAME, named(to))
    FIND(renameat);
    return real(at, from, into, to);
}

int ftruncate(int file, off_t size) {
    static int (*real)(int, off_t);
    MIND(CUT, held(file))
    FIND(ftruncate);
    return real(file, size);
}

int ftruncate64(int file, off64_t size) {
    static int (*real)(int, off64_t);
    MIND(CUT, held(file))
    FIND(ftruncate64);
    return real(file, size);
}
