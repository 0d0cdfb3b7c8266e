//! Files and signatures at each other: every byte, and anything at all.

use image_format::{Hash, Root};
use proptest::prelude::*;

use super::minisign::UNTRUSTED;
use super::*;

fn root_file() -> RootFile {
    RootFile::new(Root(Hash::of(b"disk")), 401_234_567, "debian-12.img.zst").unwrap()
}

/// A key, its public half as a file, a text, and its signature.
fn signed() -> (SecretKey, String, String, String) {
    let key = SecretKey::generate().unwrap();
    let text = root_file().encode();
    let signature = key.sign(text.as_bytes(), "timestamp:1\tfile:x\thashed");
    let public = key.public_key().to_file();
    (key, public, text, signature)
}

/// Whether all three files go together, from their bytes.
fn holds(public: &[u8], text: &[u8], signature: &[u8]) -> bool {
    let check = || {
        let key: PublicKey =
            std::str::from_utf8(public).map_err(|_| TrustError::PublicKey)?.parse()?;
        key.verify(text, &Signature::parse(signature)?)?;
        RootFile::parse(text)?.check(&root_file())
    };
    check().is_ok()
}

#[test]
fn every_changed_bit_of_root_file_signature_and_public_key_is_noticed() {
    let (_, public, text, signature) = signed();
    let files = [public.as_bytes(), text.as_bytes(), signature.as_bytes()];
    assert!(holds(files[0], files[1], files[2]));
    for which in 0..3 {
        // The first line of key and signature is for people, and nobody vouches for it.
        let comment = UNTRUSTED.len()..files[which].iter().position(|b| *b == b'\n').unwrap();
        let last = files[which].len() - 1;
        for (at, bit) in (0..=last).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut changed = files.map(<[u8]>::to_vec);
            changed[which][at] ^= 1 << bit;
            let still = holds(&changed[0], &changed[1], &changed[2]);
            // Line ends are not signed either, where a file is lines of base64.
            let unsigned = which != 1 && (comment.contains(&at) || at == last);
            assert!(!still || unsigned, "file {which}, bit {bit} of byte {at}");
        }
        for len in 0..last {
            let mut cut = files;
            cut[which] = &files[which][..len];
            assert!(!holds(cut[0], cut[1], cut[2]), "file {which} cut to {len}");
        }
        let mut longer = files.map(<[u8]>::to_vec);
        longer[which].extend_from_slice(b"more\n");
        assert!(!holds(&longer[0], &longer[1], &longer[2]), "file {which} with more behind it");
    }
}

#[test]
fn what_was_signed_is_compared_with_the_image_field_by_field() {
    let signed = root_file();
    let other = |root: &[u8], size, name| RootFile::new(Root(Hash::of(root)), size, name).unwrap();
    signed.check(&root_file()).unwrap();
    for (image, what) in [
        (other(b"other", 401_234_567, "debian-12.img.zst"), "root"),
        (other(b"disk", 401_234_568, "debian-12.img.zst"), "size"),
        (other(b"disk", 401_234_567, "debian-13.img.zst"), "name"),
    ] {
        let error = signed.check(&image).unwrap_err().to_string();
        assert!(error.contains(&format!("an image of {what} ")), "{error}");
    }
}

#[test]
fn names_that_would_forge_a_line_cannot_be_signed() {
    for name in ["", "a\nroot 00", "a\rb", "a/b", &"x".repeat(256)] {
        assert_eq!(RootFile::new(Root(Hash::ZERO), 1, name), Err(TrustError::Name), "{name:?}");
    }
}

#[test]
fn another_key_is_named() {
    let (_, _, text, signature) = signed();
    let other = SecretKey::generate().unwrap().public_key();
    let error = other.verify(text.as_bytes(), &Signature::parse(signature.as_bytes()).unwrap());
    assert!(error.unwrap_err().to_string().contains(&other.id().to_string()));
}

proptest! {
    #[test]
    fn root_files_come_back(root in any::<[u8; 32]>(), size in any::<u64>(), name in "[^/\\p{C}]{1,60}") {
        let file = RootFile::new(Root(Hash(root)), size, &name).unwrap();
        prop_assert_eq!(RootFile::parse(file.encode().as_bytes()), Ok(file));
    }

    #[test]
    fn any_bytes_are_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = RootFile::parse(&bytes);
        let _ = Signature::parse(&bytes);
        let _ = text.parse::<PublicKey>();
        let _ = SecretKey::parse(&text, || Ok::<_, TrustError>(String::new()));
    }

    #[test]
    fn lines_of_any_base64_are_a_value_or_an_error(
        lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..170), 0..5),
    ) {
        use base64::Engine as _;
        let encode = |line: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(line);
        let text = format!("{UNTRUSTED}\n{}\n", lines.iter().map(encode).collect::<Vec<_>>().join("\ntrusted comment: x\n"));
        let _ = Signature::parse(text.as_bytes());
        let _ = text.parse::<PublicKey>();
    }
}
