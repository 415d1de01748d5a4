/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/err.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* How many bytes a character at c has that does something to a terminal instead of being seen, in
 * UTF-8; 0: it is seen. Among these are the controls of the direction of writing, which let a text
 * read as another one: U+061C, U+200E, U+200F, U+202A to U+202E, and U+2066 to U+2069. */
static size_t control_bytes(const unsigned char *c)
{
    if (c[0] < 0x20 || c[0] == 0x7f)
        return 1;
    if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0) /* C1 */
        return 2;
    if (c[0] == 0xd8 && c[1] == 0x9c)
        return 2;
    if (c[0] == 0xe2 && c[1] == 0x80 &&
        (c[2] == 0x8e || c[2] == 0x8f || (c[2] >= 0xaa && c[2] <= 0xae)))
        return 3;
    return c[0] == 0xe2 && c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9 ? 3 : 0;
}

void vc_make_printable(char *text)
{
    unsigned char *c = (unsigned char *)text;

    while (*c) {
        size_t n = control_bytes(c);

        memset(c, '?', n);
        c += n ? n : 1;
    }
}

int vc_err_set_at(struct vc_err *err, const char *file, int line, int code, int sys_errno,
                  const char *hint, const char *fmt, ...)
{
    va_list ap;

    if (!err)
        return code;
    *err = (struct vc_err){.code = code, .sys_errno = sys_errno, .file = file, .line = line};
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    if (sys_errno) {
        size_t n = strlen(err->message);
        char text[80];

        /* The GNU variant: returns the text, in the buffer or not. */
        snprintf(err->message + n, sizeof(err->message) - n, ": %s",
                 strerror_r(sys_errno, text, sizeof(text)));
    }
    if (hint)
        snprintf(err->hint, sizeof(err->hint), "%s", hint);
    vc_make_printable(err->message); /* names in it may be a peer's choice */
    vc_make_printable(err->hint);
    return code;
}

int vc_err_prefix(struct vc_err *err, const char *fmt, ...)
{
    char old[sizeof(err->message)];
    va_list ap;
    size_t n;

    if (!err)
        return VC_E_FAILED;
    memcpy(old, err->message, sizeof(old));
    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    n = strlen(err->message);
    snprintf(err->message + n, sizeof(err->message) - n, ": %s", old);
    vc_make_printable(err->message); /* as above */
    return err->code;
}

const char *vc_err_name(int code)
{
    static const struct {
        int code;
        const char *name;
    } names[] = {
        {0, "ok"},
        {VC_E_FAILED, "failed"},
        {VC_E_USAGE, "usage"},
        {VC_E_NOMEM, "no-memory"},
        {VC_E_QMP_CONNECT, "qmp-connect"},
        {VC_E_QMP, "qmp"},
        {VC_E_QEMU_STATE, "qemu-state"},
        {VC_E_UNREACHABLE, "unreachable"},
        {VC_E_VERSION, "version"},
        {VC_E_PROTOCOL, "protocol"},
        {VC_E_PEER_LOST, "peer-lost"},
        {VC_E_REFUSED, "refused"},
        {VC_E_NO_SUCH_VM, "no-such-vm"},
        {VC_E_DEST_QEMU, "destination-qemu"},
        {VC_E_STORE, "store"},
        {VC_E_STORE_FULL, "store-full"},
        {VC_E_CORRUPT, "corrupt"},
        {VC_E_BUSY, "busy"},
        {VC_E_NOT_QEMU, "not-qemu"},
        {VC_E_NO_RETURN_PATH, "no-return-path"},
        {VC_E_MIGRATION, "migration"},
        {VC_E_SEAL, "seal"},
        {VC_E_CANCELLED, "cancelled"},
        {VC_E_UNSETTLED, "unsettled"},
        {VC_E_POSTCOPY, "postcopy-interrupted"},
    };

    for (size_t i = 0; i < VC_ARRAY_LEN(names); i++)
        if (names[i].code == code)
            return names[i].name;
    return "unknown";
}
