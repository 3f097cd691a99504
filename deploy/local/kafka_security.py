"""A Kafka that trusts nobody: TLS on every port, three ways to log in, and an ACL needed for everything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_AUTHORIZER = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
_OAUTH = "org.apache.kafka.common.security.oauthbearer"


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """What `Kafka(folder, security=…)` needs. All files are PEM.

    `key_store` holds the node's private key (PKCS 8) and its certificate, for 127.0.0.1, in one file. Who owns that
    certificate or the one of `administrator`, named by its subject such as `CN=admin`, may do everything.
    `jwks_url` has the keys that sign OAuth tokens for `audience`; without it, OAUTHBEARER is not offered.
    """

    ca_file: Path
    key_store: Path
    node: str
    administrator: str
    admin_cert_file: Path
    admin_key_file: Path
    jwks_url: str | None = None
    audience: str = "kafka"

    def properties(self, mutual: int, tls: int, sasl: int, controller: int) -> dict[str, object]:
        """The broker's configuration, given a port for each way in: by own certificate, without any login, by SASL."""
        mechanisms = ["SCRAM-SHA-512", *(["OAUTHBEARER"] if self.jwks_url else [])]
        public = f"MUTUAL://127.0.0.1:{mutual},TLS://127.0.0.1:{tls},SASL://127.0.0.1:{sasl}"
        properties: dict[str, object] = {
            "listeners": f"{public},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": public,
            "listener.security.protocol.map": "MUTUAL:SSL,TLS:SSL,SASL:SASL_SSL,CONTROLLER:SSL",
            "inter.broker.listener.name": "MUTUAL",
            "listener.name.mutual.ssl.client.auth": "required",
            "listener.name.controller.ssl.client.auth": "required",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.key_store,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.ca_file,
            "authorizer.class.name": _AUTHORIZER,
            "super.users": f"User:{self.node};User:{self.administrator}",
            "sasl.enabled.mechanisms": ",".join(mechanisms),
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        }
        if self.jwks_url:
            properties |= {
                "listener.name.sasl.oauthbearer.sasl.jaas.config": f"{_OAUTH}.OAuthBearerLoginModule required;",
                "listener.name.sasl.oauthbearer.sasl.server.callback.handler.class": (
                    f"{_OAUTH}.OAuthBearerValidatorCallbackHandler"
                ),
                "listener.name.sasl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": self.jwks_url,
                "listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.audience": self.audience,
            }
        return properties

    def jvm_arguments(self) -> list[str]:
        """Kafka asks only addresses for keys that its command line names."""
        return [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={self.jwks_url}"] if self.jwks_url else []

    def administration(self) -> dict[str, str]:
        """What librdkafka needs to know to log in as the administrator."""
        return {
            "security.protocol": "SSL",
            "ssl.ca.location": str(self.ca_file),
            "ssl.certificate.location": str(self.admin_cert_file),
            "ssl.key.location": str(self.admin_key_file),
        }
