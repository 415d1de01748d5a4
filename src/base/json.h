/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifndef VC_BASE_JSON_H
#define VC_BASE_JSON_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/err.h"

/* A strict, typed view of json-c: a value of another type, or out of range, counts as absent.
 * Objects are counted by json-c; vc_auto_json drops one reference at the end of the scope. */

static inline void vc_cleanup_json(struct json_object **o)
{
    json_object_put(*o);
}
#define vc_auto_json VC_CLEANUP(vc_cleanup_json)

/** Deepest nesting accepted. */
#define VC_JSON_MAX_DEPTH 32

/** The most values in a text, counted by `{`, `[` and `,`, wherever they are. json-c takes up to
 * 800 bytes for each. QEMU's longest answer (query-block) has some 150 for a disk with five backing
 *  files. */
#define VC_JSON_MAX_VALUES 65536u

/** Whether a text has more values. Not parsed. */
bool vc_json_is_too_much(const char *text, size_t n);
/** Parses exactly one value; NULL if it is anything else, or too much. The caller owns it. */
struct json_object *vc_json_parse(const char *text, size_t n);

/** A member, borrowed; NULL if @o is no object or has none of that name. */
struct json_object *vc_json_get(struct json_object *o, const char *key);
/** Its text, borrowed, or @missing. */
const char *vc_json_str(struct json_object *o, const char *key, const char *missing);
/** A number that is not negative, up to 2^64 - 1, or @missing. */
uint64_t vc_json_u64(struct json_object *o, const char *key, uint64_t missing);
bool vc_json_bool(struct json_object *o, const char *key, bool missing);

/** Adds a member (the text is copied); @o takes the value. Out of memory leaves it out. */
void vc_json_add_str(struct json_object *o, const char *key, const char *text);
void vc_json_add_u64(struct json_object *o, const char *key, uint64_t v);
void vc_json_add_bool(struct json_object *o, const char *key, bool v);

/** One line without newline; belongs to the object. */
const char *vc_json_line(struct json_object *o);

#endif
