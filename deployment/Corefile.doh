# DNS over HTTPS to a resolver that knows this machine by its certificate: see upstream.md.
. {
    bind 127.0.0.1 ::1
    errors
    reload
    ipdestinationguard nft-local {
        upstream 192.0.2.53
        require encrypted
    }
    forward . https://192.0.2.53 {
        tls /etc/coredns/tls/client.pem /etc/coredns/tls/client-key.pem /etc/coredns/tls/ca.pem
        tls_servername resolver.example.com
    }
    cache
}
