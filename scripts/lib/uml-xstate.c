/*
 * User-mode Linux up to 6.12 keeps 2696 octets of floating-point state a process: AVX-512 and protection keys. A host
 * whose processor has AMX has more, and takes back only all of it: PTRACE_SETREGSET with less fails with EFAULT, and the
 * first program of the guest dies ("ptrace set fp regs failed, errno = 14").
 *
 * Preloaded, this completes what User-mode Linux gives back with what the process has at the moment. Guests do not use AMX.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/uio.h>

enum { GETREGSET = 0x4204, SETREGSET = 0x4205, X86_XSTATE = 0x202 };

long ptrace(long request, long pid, void *addr, void *data)
{
    static long (*next)(long, long, void *, void *);
    static _Thread_local char whole[64 * 1024];
    struct iovec *given = data;

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "ptrace");
    if (request == SETREGSET && (long)addr == X86_XSTATE && given->iov_len < sizeof whole) {
        struct iovec all = { whole, sizeof whole };
        if (next(GETREGSET, pid, addr, &all) == 0 && all.iov_len > given->iov_len) {
            memcpy(whole, given->iov_base, given->iov_len);
            return next(SETREGSET, pid, addr, &all);
        }
    }
    return next(request, pid, addr, data);
}
