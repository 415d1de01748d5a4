/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qstream/parser.h"

/* The frame of the stream: what QEMU's migration/savevm.c writes around the sections
 * (qemu_savevm_state_header, save_section_header, qemu_savevm_command_send), and the
 * configuration section (vmstate_configuration). */

#define CMD_OPEN_RETURN_PATH 1
#define CMD_POSTCOPY_ADVISE 3
#define CMD_RAM_DISCARD 6
#define CMD_PACKAGED 7
#define CMD_ENABLE_COLO 8 /* QEMU 3.0: POSTCOPY_RESUME */
#define CMD_POSTCOPY_RESUME 9

static uint32_t acc_u32(const struct vc_qs_parser *p)
{
    return (uint32_t)vc_load_be(p->acc, 4);
}

static bool acc_is(const struct vc_qs_parser *p, const char *text)
{
    return p->acc[0] == strlen(text) && !memcmp(p->acc + 1, text, p->acc[0]);
}

static void next_type(struct vc_qs_parser *p)
{
    vc_qs_expect(p, VC_QS_ST_TYPE, 1);
}

/* ---- file header and configuration ---- */

/* COMMAND with POSTCOPY_RESUME or RECV_BITMAP. */
static bool is_recovery(uint64_t head)
{
    return head >> 40 == 0x080009 || head >> 40 == 0x08000a;
}

static const char *not_qemu(uint64_t head)
{
    if (head >> 32 == 0x5145564d)
        return "the stream has a version other than 3";
    if (head >> 32 == 0x11223344)
        return "this is a multifd channel";
    if (head >> 48 == 0x1603)
        return "the stream is encrypted (TLS)";
    if (is_recovery(head))
        return "this is a postcopy recovery";
    return "the stream does not begin as QEMU's does";
}

static void on_header(struct vc_qs_parser *p)
{
    uint64_t head = vc_load_be(p->acc, 8);

    p->is_qemu = head == 0x5145564d00000003;
    p->is_recovery = is_recovery(head);
    if (!p->is_qemu) {
        vc_qs_lose(p, true, "%s", not_qemu(head));
        return;
    }
    p->at_start = true;
    next_type(p);
}

/* Boards whose target has one page size only. Others without target-page-bits are looked into. */
static bool machine_has_4k_pages(const struct vc_qs_parser *p, size_t n)
{
    static const char *const prefixes[] = {"pc-", "microvm", "s390-ccw-virtio-", "pseries-"};

    for (size_t i = 0; i < VC_ARRAY_LEN(prefixes); i++)
        if (n >= strlen(prefixes[i]) && !memcmp(p->acc, prefixes[i], strlen(prefixes[i])))
            return true;
    return false;
}

static void on_machine_len(struct vc_qs_parser *p)
{
    uint32_t n = acc_u32(p);

    if (n == 0 || n > VC_QS_MAX_MACHINE_NAME)
        vc_qs_lose(p, false, "the machine name has %u bytes", n);
    else
        vc_qs_expect(p, VC_QS_ST_MACHINE, n);
}

static void on_machine(struct vc_qs_parser *p)
{
    if (machine_has_4k_pages(p, p->want))
        vc_qs_page_bytes_set(p, 4096);
    p->in_configuration = true;
    next_type(p);
}

static void on_sub_name(struct vc_qs_parser *p)
{
    if (acc_is(p, "configuration/target-page-bits")) {
        p->subsection = VC_QS_SUB_PAGE_BITS;
    } else if (acc_is(p, "configuration/capabilities")) {
        p->subsection = VC_QS_SUB_CAPS;
    } else if (acc_is(p, "configuration/uuid")) {
        p->subsection = VC_QS_SUB_UUID;
    } else {
        /* Its length is not known. */
        vc_qs_lose(p, false, "unknown subsection '%.*s'", p->acc[0], (const char *)p->acc + 1);
        return;
    }
    vc_qs_expect(p, VC_QS_ST_SUB_VERSION, 4);
}

static void on_sub_version(struct vc_qs_parser *p)
{
    switch (p->subsection) {
    case VC_QS_SUB_PAGE_BITS:
        vc_qs_expect(p, VC_QS_ST_PAGE_BITS, 4);
        break;
    case VC_QS_SUB_CAPS:
        vc_qs_expect(p, VC_QS_ST_N_CAPS, 4);
        break;
    case VC_QS_SUB_UUID:
        p->skip = 16;
        next_type(p);
        break;
    }
}

static void on_page_bits(struct vc_qs_parser *p)
{
    uint32_t bits = acc_u32(p);

    if (bits > 31 || !vc_qs_page_bytes_valid(1ull << bits)) {
        vc_qs_lose(p, true, "pages of 2^%u bytes are not supported", bits);
        return;
    }
    p->page_bytes_said = true;
    vc_qs_page_bytes_set(p, 1u << bits);
    next_type(p);
}

static void on_n_caps(struct vc_qs_parser *p)
{
    if (acc_u32(p))
        vc_qs_expect_str(p, VC_QS_ST_CAP);
    else
        next_type(p);
}

/* Capabilities that the stream names are those that change its layout (x-ignore-shared adds
 * addresses to the block list, mapped-ram moves the pages elsewhere), so any of them ends it. */
static void on_cap(struct vc_qs_parser *p)
{
    vc_qs_lose(p, true, "capability '%.*s' is on", p->acc[0], (const char *)p->acc + 1);
}

/* ---- commands ---- */

static void on_command(struct vc_qs_parser *p)
{
    uint16_t command = (uint16_t)vc_load_be(p->acc, 2);
    uint16_t len = (uint16_t)vc_load_be(p->acc + 2, 2);

    switch (command) {
    case CMD_OPEN_RETURN_PATH:
        vc_qs_raise_here(p, VC_QS_EV_RETURN_PATH);
        break;
    case CMD_POSTCOPY_ADVISE:
        vc_qs_raise_here(p, VC_QS_EV_POSTCOPY);
        if (len == 16) { /* 0: postcopy of dirty bitmaps only */
            vc_qs_expect(p, VC_QS_ST_ADVISE, 16);
            return;
        }
        break;
    case CMD_RAM_DISCARD:
        vc_qs_discard_begin(p, len);
        return;
    case CMD_PACKAGED:
        if (len != 4) {
            vc_qs_lose(p, false, "command PACKAGED has %u bytes", len);
            return;
        }
        vc_qs_expect(p, VC_QS_ST_PACKAGED, 4);
        return;
    case CMD_ENABLE_COLO:
        vc_qs_lose(p, true, "COLO is on");
        return;
    case CMD_POSTCOPY_RESUME:
        vc_qs_lose(p, true, "this is a postcopy recovery");
        return;
    default: /* skipped by its length, known or not */
        break;
    }
    p->skip = len;
    next_type(p);
}

static void on_advise(struct vc_qs_parser *p)
{
    uint64_t page_bytes = vc_load_be(p->acc + 8, 8);

    p->postcopy_sizes = vc_load_be(p->acc, 8);
    if (!p->page_bytes_said && !p->ram_started && vc_qs_page_bytes_valid(page_bytes))
        vc_qs_page_bytes_set(p, (uint32_t)page_bytes);
    next_type(p);
}

/* ---- sections ---- */

static struct vc_qs_section *find_section(struct vc_qs_parser *p, uint32_t id)
{
    for (uint32_t i = 0; i < p->n_sections; i++)
        if (p->sections[i].id == id)
            return &p->sections[i];
    return NULL;
}

bool vc_qs_section_add(struct vc_qs_parser *p, uint32_t id, enum vc_qs_iterable kind)
{
    struct vc_qs_section *s = find_section(p, id);

    if (!s) {
        if (p->n_sections == VC_QS_MAX_SECTIONS)
            return false;
        s = &p->sections[p->n_sections++];
    }
    *s = (struct vc_qs_section){.id = id, .kind = kind};
    return true;
}

static void begin_payload(struct vc_qs_parser *p)
{
    if (p->section_kind != VC_QS_IT_RAM) {
        vc_qs_iterable_begin(p);
        return;
    }
    if (p->section_type != QEMU_VM_SECTION_START)
        p->ram_part_seen = true;
    vc_qs_ram_begin(p);
}

static void on_section_id(struct vc_qs_parser *p)
{
    struct vc_qs_section *s;

    p->section_id = acc_u32(p);
    p->early = false;
    if (p->section_type == QEMU_VM_SECTION_START || p->section_type == QEMU_VM_SECTION_FULL) {
        vc_qs_expect_str(p, VC_QS_ST_IDSTR);
        return;
    }
    s = find_section(p, p->section_id);
    if (!s) {
        vc_qs_lose(p, false, "section %u was never started", p->section_id);
        return;
    }
    p->section_kind = s->kind;
    begin_payload(p);
}

/* Only virtio-mem has a FULL section before the pages (early_setup, QEMU 8.0), and its length can
 * be told. */
static bool is_early(const struct vc_qs_parser *p)
{
    static const char name[] = "virtio-mem-device-early";
    size_t n = sizeof(name) - 1, len = p->acc[0];

    if (len < n || memcmp(p->acc + 1 + len - n, name, n))
        return false;
    return len == n || p->acc[len - n] == '/';
}

/* The next field takes the name's place, so what the name tells is told here. */
static void on_idstr(struct vc_qs_parser *p)
{
    size_t n = p->acc[0];

    if (p->section_type == QEMU_VM_SECTION_FULL) {
        p->early = is_early(p);
        p->section_kind = VC_QS_IT_NONE;
    } else {
        p->section_kind = vc_qs_iterable_of(p->acc + 1, n);
    }
    if (!p->early && p->section_kind == VC_QS_IT_NONE) {
        vc_qs_lose(p, false, "unknown section '%.*s'", (int)n, (const char *)p->acc + 1);
        return;
    }
    vc_qs_expect(p, VC_QS_ST_VERSION, 8);
}

static void on_version(struct vc_qs_parser *p)
{
    uint32_t instance = acc_u32(p);
    uint32_t version = (uint32_t)vc_load_be(p->acc + 4, 4);
    bool is_ram = p->section_kind == VC_QS_IT_RAM;

    if (p->early) {
        vc_qs_expect(p, VC_QS_ST_VMEM, VC_QS_VMEM_BYTES);
        return;
    }
    if (version != vc_qs_iterable_version(p->section_kind) || (is_ram && instance)) {
        vc_qs_lose(p, false, "section %u has an unknown version (%u)", p->section_id, version);
        return;
    }
    if (is_ram && p->ram_started) {
        vc_qs_lose(p, true, "the RAM section starts twice");
        return;
    }
    if (!vc_qs_section_add(p, p->section_id, p->section_kind)) {
        vc_qs_lose(p, false, "more than %u sections", VC_QS_MAX_SECTIONS);
        return;
    }
    if (is_ram) {
        p->ram_started = true;
        p->ram_id = p->section_id;
    }
    begin_payload(p);
}

void vc_qs_section_end(struct vc_qs_parser *p)
{
    p->footer_due = true;
    next_type(p);
}

static void on_footer(struct vc_qs_parser *p)
{
    uint32_t id = acc_u32(p);

    if (id != p->section_id) {
        vc_qs_lose(p, false, "section %u ends with the footer of %u", p->section_id, id);
        return;
    }
    next_type(p);
}

/* ---- the type byte ---- */

/* Streams of old machine types have no footers; the first section's end tells. */
static bool takes_footer(struct vc_qs_parser *p, uint8_t type)
{
    if (!p->footer_due)
        return false;
    p->footer_due = false;
    if (p->footers == VC_QS_FOOTERS_UNKNOWN)
        p->footers = type == QEMU_VM_SECTION_FOOTER ? VC_QS_FOOTERS_YES : VC_QS_FOOTERS_NO;
    return p->footers == VC_QS_FOOTERS_YES;
}

bool vc_qs_stream_peek(struct vc_qs_parser *p, uint8_t type)
{
    if (p->footer_due && (p->footers == VC_QS_FOOTERS_YES || type == QEMU_VM_SECTION_FOOTER))
        return false;
    if (type == QEMU_VM_EOF || (type == QEMU_VM_SECTION_FULL && p->ram_part_seen)) {
        p->state = VC_QS_ST_VERBATIM;
        vc_qs_raise(p, VC_QS_EV_TAIL);
        return true;
    }
    if (type >= QEMU_VM_SECTION_START && type <= QEMU_VM_SECTION_FULL && !p->section_seen) {
        p->section_seen = true;
        vc_qs_raise(p, VC_QS_EV_SECTION);
        return true;
    }
    return false;
}

static void on_type(struct vc_qs_parser *p)
{
    uint8_t type = p->acc[0];
    bool at_start = p->at_start, in_configuration = p->in_configuration;

    p->at_start = false;
    p->in_configuration = false;
    if (takes_footer(p, type)) {
        if (type != QEMU_VM_SECTION_FOOTER)
            vc_qs_lose(p, false, "section %u has no footer", p->section_id);
        else
            vc_qs_expect(p, VC_QS_ST_FOOTER, 4);
        return;
    }
    if (type >= QEMU_VM_SECTION_START && type <= QEMU_VM_SECTION_FULL) {
        p->section_type = type;
        vc_qs_expect(p, VC_QS_ST_SECTION_ID, 4);
    } else if (type == QEMU_VM_SUBSECTION && in_configuration) {
        p->in_configuration = true;
        vc_qs_expect_str(p, VC_QS_ST_SUB_NAME);
    } else if (type == QEMU_VM_CONFIGURATION && at_start) {
        vc_qs_expect(p, VC_QS_ST_MACHINE_LEN, 4);
    } else if (type == QEMU_VM_COMMAND) {
        vc_qs_expect(p, VC_QS_ST_COMMAND, 4);
    } else {
        vc_qs_lose(p, false, "unknown section type 0x%02x", type);
    }
}

void vc_qs_stream_field(struct vc_qs_parser *p)
{
    switch (p->state) {
    case VC_QS_ST_HEADER:
        on_header(p);
        break;
    case VC_QS_ST_TYPE:
        on_type(p);
        break;
    case VC_QS_ST_MACHINE_LEN:
        on_machine_len(p);
        break;
    case VC_QS_ST_MACHINE:
        on_machine(p);
        break;
    case VC_QS_ST_SUB_NAME:
        on_sub_name(p);
        break;
    case VC_QS_ST_SUB_VERSION:
        on_sub_version(p);
        break;
    case VC_QS_ST_PAGE_BITS:
        on_page_bits(p);
        break;
    case VC_QS_ST_N_CAPS:
        on_n_caps(p);
        break;
    case VC_QS_ST_CAP:
        on_cap(p);
        break;
    case VC_QS_ST_COMMAND:
        on_command(p);
        break;
    case VC_QS_ST_ADVISE:
        on_advise(p);
        break;
    case VC_QS_ST_PACKAGED:
        p->skip = p->package_bytes = acc_u32(p);
        vc_qs_raise(p, VC_QS_EV_PACKAGED);
        next_type(p);
        break;
    case VC_QS_ST_SECTION_ID:
        on_section_id(p);
        break;
    case VC_QS_ST_IDSTR:
        on_idstr(p);
        break;
    case VC_QS_ST_VERSION:
        on_version(p);
        break;
    case VC_QS_ST_FOOTER:
        on_footer(p);
        break;
    default:
        break;
    }
}
