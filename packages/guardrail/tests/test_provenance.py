import datetime as dt
import json

import numpy as np
import pytest
from conftest import scene

from wfm_guardrail.cli import main
from wfm_guardrail.videofile import write_chunks


@pytest.fixture
def long_film(tmp_path):
    path = tmp_path / "film.mp4"
    write_chunks(path, [np.repeat(np.repeat(scene(40), 6, axis=2), 6, axis=3)], 20.0)
    return path


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("a secret of some length\n")
    return path


def test_a_mark_is_written_and_found_again(long_film, secret, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    words = ["provenance", "sign", str(long_film), "-o", str(out), "--mark-key", str(secret)]
    assert main([*words, "--payload", "77"]) == 0
    look = ["provenance", "verify", "--mark-key", str(secret), "--json"]
    capsys.readouterr()
    assert main([*look, str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["mark"]["payload"] == 77
    assert main([*look, str(long_film)]) == 3
    assert {p.name for p in tmp_path.iterdir()} == {"film.mp4", "out.mp4", "secret"}


def test_what_is_missing_is_named(long_film, secret, tmp_path, capsys):
    words = ["provenance", "sign", str(long_film), "-o"]
    assert main([*words, str(tmp_path / "x.mp4")]) == 2
    assert main([*words, str(tmp_path / "x.mp4"), "--key", str(secret)]) == 2
    assert main([*words, str(long_film), "--mark-key", str(secret)]) == 2
    assert "is the input" in capsys.readouterr().err


@pytest.fixture
def identity(tmp_path):
    """A certificate authority of our own and a leaf, as C2PA wants them."""
    pytest.importorskip("c2pa", reason="the extra [c2pa] is not installed")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def name(text):
        parts = [(NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "Test")]
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    def certificate(subject, key, issuer, issuer_key, *, authority):
        now = dt.datetime.now(dt.UTC)
        names = "content_commitment key_encipherment data_encipherment key_agreement"
        usage = dict.fromkeys(f"{names} encipher_only decipher_only crl_sign".split(), False)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=30))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
            .add_extension(
                x509.KeyUsage(digital_signature=not authority, key_cert_sign=authority, **usage),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
        )
        if not authority:
            use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(use, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = certificate("Root", root_key, "Root", root_key, authority=True)
    leaf = certificate("Leaf", key, "Root", root_key, authority=False)
    pem = serialization.Encoding.PEM
    (tmp_path / "chain.pem").write_bytes(leaf.public_bytes(pem) + root.public_bytes(pem))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return ["--certificate", str(tmp_path / "chain.pem"), "--key", str(tmp_path / "key.pem")]


def test_a_signed_video_is_valid_until_it_is_touched(film, identity, tmp_path, capsys):
    out = tmp_path / "signed.mp4"
    assert main(["provenance", "sign", str(film), "-o", str(out), *identity]) == 0
    capsys.readouterr()
    assert main(["provenance", "verify", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["manifest"]
    assert found["state"] in ("Valid", "Trusted")
    assert "trainedAlgorithmicMedia" in json.dumps(found["manifest"])
    data = bytearray(out.read_bytes())
    place = data.rfind(b"mdat") + 40
    data[place] ^= 1
    out.write_bytes(data)
    assert main(["provenance", "verify", str(out)]) == 3
    assert main(["provenance", "verify", str(film)]) == 3
