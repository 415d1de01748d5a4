/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>

#include "net/internal.h"

/* Who the peer is, and why it is not accepted, in words. */

/* ---- names ---- */

bool vc_tls_expect(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *p = SSL_get0_param(ssl);
    char bare[256];

    vc_address_bare(host, bare); /* no certificate knows of zones */
    host = bare;
    /* Names are where they belong, in the list of alternative names, and whole. */
    X509_VERIFY_PARAM_set_hostflags(p, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT |
                                           X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    if (X509_VERIFY_PARAM_set1_ip_asc(p, host))
        return true;
    ERR_clear_error();
    return X509_VERIFY_PARAM_set1_host(p, host, 0) && SSL_set_tlsext_host_name(ssl, host);
}

struct names {
    char *out;
    size_t n, used;
};

/* A name with anything in it but what names are made of could be taken for another: left out. */
static void add_name(struct names *l, const char *text, size_t n)
{
    if (n == 0 || l->used + n + 2 > l->n)
        return;
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return;
    memcpy(l->out + l->used, text, n);
    l->used += n;
    l->out[l->used++] = '\0';
}

static void add_alternative(struct names *l, const GENERAL_NAME *g)
{
    char text[INET6_ADDRSTRLEN];

    if (g->type == GEN_DNS) {
        add_name(l, (const char *)ASN1_STRING_get0_data(g->d.dNSName),
                 (size_t)ASN1_STRING_length(g->d.dNSName));
    } else if (g->type == GEN_IPADD) {
        int n = ASN1_STRING_length(g->d.iPAddress);

        if ((n == 4 || n == 16) &&
            inet_ntop(n == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(g->d.iPAddress), text,
                      sizeof(text)))
            add_name(l, text, strlen(text));
    }
}

static void add_common_name(struct names *l, const X509 *x)
{
    const X509_NAME *subject = X509_get_subject_name(x);
    int at = X509_NAME_get_index_by_NID(subject, NID_commonName, -1);
    const ASN1_STRING *s =
        at < 0 ? NULL : X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, at));

    if (s)
        add_name(l, (const char *)ASN1_STRING_get0_data(s), (size_t)ASN1_STRING_length(s));
}

void vc_tls_peer_names(SSL *ssl, char *out, size_t n)
{
    struct names l = {.out = out, .n = n};
    X509 *x = SSL_get1_peer_certificate(ssl);
    GENERAL_NAMES *all = x ? X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL) : NULL;

    for (int i = 0; i < sk_GENERAL_NAME_num(all); i++)
        add_alternative(&l, sk_GENERAL_NAME_value(all, i));
    if (!all && x)
        add_common_name(&l, x);
    out[l.used] = '\0';
    GENERAL_NAMES_free(all);
    X509_free(x);
    ERR_clear_error();
}

/* ---- reasons ---- */

static int explain_verify(long v, const char *peer, const char *wanted, struct vc_err *err)
{
    switch (v) {
    case X509_V_ERR_HOSTNAME_MISMATCH:
    case X509_V_ERR_IP_ADDRESS_MISMATCH:
        return vc_err_set_hint(
            err, VC_E_REFUSED, "call the host by a name in it, or give that with --tls-hostname",
            "the certificate of '%s' is not for '%s'", peer, wanted ? wanted : "it");
    case X509_V_ERR_CERT_HAS_EXPIRED:
        return vc_err_set_hint(err, VC_E_REFUSED, "`vecycle tls init --renew` makes a new one",
                               "the certificate of '%s' has expired", peer);
    case X509_V_ERR_CERT_NOT_YET_VALID:
        return vc_err_set_hint(err, VC_E_REFUSED, "do both clocks agree?",
                               "the certificate of '%s' is not valid yet", peer);
    case X509_V_ERR_CERT_REVOKED:
        return vc_err_set(err, VC_E_REFUSED, "the certificate of '%s' is revoked", peer);
    case X509_V_ERR_UNABLE_TO_GET_CRL:
    case X509_V_ERR_CRL_HAS_EXPIRED:
        return vc_err_set_hint(err, VC_E_REFUSED, "put a current one of each authority there",
                               "ca-crl.pem does not tell about the certificate of '%s': %s", peer,
                               X509_verify_cert_error_string(v));
    default:
        return vc_err_set_hint(err, VC_E_REFUSED, "both hosts need certificates of one authority",
                               "the certificate of '%s' is not trusted: %s", peer,
                               X509_verify_cert_error_string(v));
    }
}

/* The peer's reason, or 0 if it is none of those about certificates. */
static int explain_alert(int alert, const char *peer, struct vc_err *err)
{
    switch (alert) {
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_ACCESS_DENIED:
    case SSL_AD_CERTIFICATE_REQUIRED:
        return vc_err_set_hint(err, VC_E_REFUSED,
                               "both hosts need certificates of one authority, for the names "
                               "by which they are called",
                               "'%s' does not take this host's certificate: %s", peer,
                               SSL_alert_desc_string_long(alert));
    case SSL_AD_PROTOCOL_VERSION:
        return vc_err_set(err, VC_E_VERSION, "'%s' does not speak TLS 1.3", peer);
    default:
        return 0;
    }
}

int vc_tls_explain(SSL *ssl, const char *peer, const char *wanted, struct vc_err *err)
{
    unsigned long e = ERR_peek_last_error();
    int reason = ERR_GET_LIB(e) == ERR_LIB_SSL ? ERR_GET_REASON(e) : 0, rc = 0;
    const char *text = e ? ERR_reason_error_string(e) : NULL;

    ERR_clear_error();
    if (reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
        return explain_verify(SSL_get_verify_result(ssl), peer, wanted, err);
    if (reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE)
        return vc_err_set_hint(err, VC_E_REFUSED, "it needs client-cert.pem and client-key.pem",
                               "'%s' has no certificate", peer);
    if (reason == SSL_R_UNSUPPORTED_PROTOCOL)
        return vc_err_set(err, VC_E_VERSION, "'%s' does not speak TLS 1.3", peer);
    if (reason > SSL_AD_REASON_OFFSET)
        rc = explain_alert(reason - SSL_AD_REASON_OFFSET, peer, err);
    return rc ? rc
              : vc_err_set(err, VC_E_PROTOCOL, "TLS with '%s' failed: %s", peer,
                           text ? text : "no reason known");
}
