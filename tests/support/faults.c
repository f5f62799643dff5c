/* Stands before the calls of libc that change a file system, in Python, torch and Rust alike, and
   counts, breaks or survives one of them. Loaded with LD_PRELOAD; `faults_arm` starts it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, KILL_BEFORE, KILL_AFTER, KILL_WITHIN, FAIL, SHORTEN };

static int mode, fault, sticky;
static long target, calls;
static char names[1 << 16];

void faults_arm(int what, long at, int error, int again) {
  target = at, fault = error, sticky = again, calls = 0, names[0] = 0;
  mode = what;
}
long faults_disarm(void) {
  mode = OFF;
  return calls;
}
const char *faults_names(void) { return names; }

/* Whether this call is the one, or after it if the fault stays. Several threads may call. */
static int hits(const char *name) {
  if (mode == OFF) return 0;
  long number = __sync_fetch_and_add(&calls, 1);
  if (mode == COUNT) strcat(strncat(names, name, 32), " ");
  return number == target || (sticky && number > target);
}
static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* The body of a wrapper: what is done before and after the real call. */
#define PASS(name, call) \
  int hit = hits(#name); \
  if (hit && mode == KILL_BEFORE) die(); \
  if (hit && mode == FAIL) { errno = fault; return -1; } \
  __typeof__(call) result = call; \
  if (hit && mode == KILL_AFTER) die(); \
  return result

static int regular(int handle) {
  struct stat about;
  int before = errno, is = fstat(handle, &about) == 0 && S_ISREG(about.st_mode);
  errno = before;
  return is;
}

#define OPENS(name) \
  int name(const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t bits = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (!(flags & O_CREAT)) return real(path, flags, bits); \
    PASS(open, real(path, flags, bits)); \
  }
OPENS(open)
OPENS(open64)
#define OPENS_AT(name) \
  int name(int at, const char *path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t bits = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (!(flags & O_CREAT)) return real(at, path, flags, bits); \
    PASS(open, real(at, path, flags, bits)); \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int handle, const void *bytes, size_t size) {
  REAL(write);
  if (mode == OFF || !regular(handle)) return real(handle, bytes, size);
  int hit = hits("write");
  if (hit && mode == KILL_BEFORE) die();
  if (hit && mode == KILL_WITHIN) real(handle, bytes, size / 2), die();
  if (hit && mode == FAIL) return errno = fault, -1;
  ssize_t result = real(handle, bytes, hit && mode == SHORTEN ? (size + 1) / 2 : size);
  if (hit && mode == KILL_AFTER) die();
  return result;
}
ssize_t writev(int handle, const struct iovec *parts, int count) {
  REAL(writev);
  PASS(write, real(handle, parts, count));
}
int fsync(int handle) { REAL(fsync); PASS(fsync, real(handle)); }
int fdatasync(int handle) { REAL(fdatasync); PASS(fsync, real(handle)); }
int ftruncate64(int handle, off64_t size) { REAL(ftruncate64); PASS(ftruncate, real(handle, size)); }
int rename(const char *from, const char *to) { REAL(rename); PASS(rename, real(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  PASS(rename, real(a, from, b, to));
}
int unlink(const char *path) { REAL(unlink); PASS(unlink, real(path)); }
int unlinkat(int at, const char *path, int flags) {
  REAL(unlinkat);
  PASS(unlink, real(at, path, flags));
}
int rmdir(const char *path) { REAL(rmdir); PASS(rmdir, real(path)); }
int mkdir(const char *path, mode_t bits) { REAL(mkdir); PASS(mkdir, real(path, bits)); }
int mkdirat(int at, const char *path, mode_t bits) { REAL(mkdirat); PASS(mkdir, real(at, path, bits)); }
