/* SPDX-License-Identifier: LGPL-2.1-or-later */

/* The watcher of the return path: what it concludes does not depend on where the bytes were cut;
 * once it has seen the end, or is lost, nothing changes its mind.
 *
 * Input: 8 bytes that choose the cuts, then the messages. */

#include "fuzz.h"
#include "qstream/qstream.h"

static void check(const struct vc_qs_return_path *rp)
{
    FUZZ_ASSERT(!(rp->shut && rp->lost));
    FUZZ_ASSERT(rp->have <= sizeof(rp->head) && rp->want <= sizeof(rp->head));
}

/* The same reading, written down once more and simply: 1 shut (with its status), -1 lost, 0 open.
 */
static int expected(struct vc_reader in, uint32_t *status)
{
    for (;;) {
        uint64_t type, len, bitmap;
        bool legal;

        if (vc_reader_left(&in) < 4)
            return 0;
        type = vc_load_be(vc_read_bytes(&in, 2), 2);
        len = vc_load_be(vc_read_bytes(&in, 2), 2);
        legal = ((type == 1 || type == 2 || type == 6) && len == 4) ||
                (type == 3 && len >= 13 && len <= 268) || (type == 4 && len == 12) ||
                (type == 5 && len >= 1 && len <= 256) || (type == 7 && len == 0);
        if (!legal)
            return -1;
        if (vc_reader_left(&in) < len)
            return 0;
        if (type == 1) {
            *status = (uint32_t)vc_load_be(vc_read_bytes(&in, 4), 4);
            return 1;
        }
        vc_read_bytes(&in, len);
        if (type != 5)
            continue;
        if (vc_reader_left(&in) < 8)
            return 0;
        bitmap = vc_load_be(vc_read_bytes(&in, 8), 8);
        if (bitmap > 1ull << 40)
            return -1;
        if (vc_reader_left(&in) < bitmap + 8)
            return 0;
        vc_read_bytes(&in, bitmap + 8);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct vc_reader in = vc_reader(data, n);
    uint64_t seed = fuzz_number(&in, 8);
    struct vc_reader rest = fuzz_rest(&in);
    struct vc_qs_return_path whole = {0}, cut = {0};
    uint32_t status = 0;
    int end = expected(rest, &status);

    vc_qs_return_path_feed(&whole, rest.data, rest.len);
    check(&whole);
    FUZZ_ASSERT(whole.shut == (end == 1) && whole.lost == (end == -1));
    FUZZ_ASSERT(!whole.shut || whole.status == status);
    while (vc_reader_left(&rest)) {
        struct vc_reader piece = fuzz_part(&rest, 1 + fuzz_random(&seed) % 20);
        struct vc_qs_return_path before = cut;

        vc_qs_return_path_feed(&cut, piece.data, piece.len);
        check(&cut);
        FUZZ_ASSERT(!before.shut || (cut.shut && cut.status == before.status));
        FUZZ_ASSERT(!before.lost || cut.lost);
    }
    FUZZ_ASSERT(cut.shut == whole.shut && cut.lost == whole.lost && cut.status == whole.status);
    return 0;
}
