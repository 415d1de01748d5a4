/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "base/json.h"

#include <limits.h>
#include <string.h>

static bool is_blank(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr(" \t\r\n", text[i]))
            return false;
    return true;
}

/* In strings as well: json-c is lenient about where one begins. */
bool vc_json_is_too_much(const char *text, size_t n)
{
    size_t values = 0;

    for (size_t i = 0; i < n; i++)
        values += text[i] == '{' || text[i] == '[' || text[i] == ',';
    return values > VC_JSON_MAX_VALUES;
}

struct json_object *vc_json_parse(const char *text, size_t n)
{
    /* A NUL ends the text for json-c, wherever it is. */
    bool legal = n < INT_MAX && !memchr(text, 0, n) && !vc_json_is_too_much(text, n);
    struct json_tokener *t = legal ? json_tokener_new_ex(VC_JSON_MAX_DEPTH) : NULL;
    struct json_object *o;

    if (!t)
        return NULL;
    o = json_tokener_parse_ex(t, text, (int)n);
    if (json_tokener_get_error(t) != json_tokener_success ||
        !is_blank(text + json_tokener_get_parse_end(t), n - json_tokener_get_parse_end(t))) {
        json_object_put(o);
        o = NULL;
    }
    json_tokener_free(t);
    return o;
}

struct json_object *vc_json_get(struct json_object *o, const char *key)
{
    struct json_object *v;

    if (!json_object_is_type(o, json_type_object) || !json_object_object_get_ex(o, key, &v))
        return NULL;
    return v;
}

const char *vc_json_str(struct json_object *o, const char *key, const char *missing)
{
    struct json_object *v = vc_json_get(o, key);

    return json_object_is_type(v, json_type_string) ? json_object_get_string(v) : missing;
}

uint64_t vc_json_u64(struct json_object *o, const char *key, uint64_t missing)
{
    struct json_object *v = vc_json_get(o, key);

    /* json-c keeps numbers above INT64_MAX as true uint64, and gives 0 for negative ones. */
    if (!json_object_is_type(v, json_type_int))
        return missing;
    return json_object_get_int64(v) < 0 ? missing : json_object_get_uint64(v);
}

bool vc_json_bool(struct json_object *o, const char *key, bool missing)
{
    struct json_object *v = vc_json_get(o, key);

    return json_object_is_type(v, json_type_boolean) ? json_object_get_boolean(v) : missing;
}

static void add(struct json_object *o, const char *key, struct json_object *v)
{
    if (v && json_object_object_add(o, key, v))
        json_object_put(v);
}

void vc_json_add_str(struct json_object *o, const char *key, const char *text)
{
    add(o, key, json_object_new_string(text));
}

void vc_json_add_u64(struct json_object *o, const char *key, uint64_t v)
{
    add(o, key, json_object_new_uint64(v));
}

void vc_json_add_bool(struct json_object *o, const char *key, bool v)
{
    add(o, key, json_object_new_boolean(v));
}

const char *vc_json_line(struct json_object *o)
{
    return json_object_to_json_string_ext(o,
                                          JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE);
}
