//! `base` in JSON: nothing, one image, or a list of them.
//!
//! Nearly every chain needs no more than one, and agents and controllers are upgraded apart: one image stays the text that it was before
//! there could be several.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Bases {
    None,
    One(String),
    Several(Vec<String>),
}

pub(super) fn serialize<S: Serializer>(bases: &[String], to: S) -> Result<S::Ok, S::Error> {
    let bases = match bases {
        [] => Bases::None,
        [one] => Bases::One(one.clone()),
        several => Bases::Several(several.to_vec()),
    };
    bases.serialize(to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Bases::deserialize(from)
        .map(|bases| match bases {
            Bases::None => Vec::new(),
            Bases::One(one) => vec![one],
            Bases::Several(several) => several,
        })
        // Of an untagged enum serde says no more than that nothing fits.
        .map_err(|_| serde::de::Error::custom("base is an image, or a list of images"))
}

#[cfg(test)]
mod tests {
    use crate::{CaptureOptions, RestoreOptions};

    #[test]
    fn one_base_is_a_text_and_several_are_a_list() {
        for (json, bases) in [
            (r#"{"base":null}"#, &[][..]),
            ("{}", &[]),
            (r#"{"base":[]}"#, &[]),
            (r#"{"base":"a"}"#, &["a"]),
            (r#"{"base":["a"]}"#, &["a"]),
            (r#"{"base":["a","b"]}"#, &["a", "b"]),
        ] {
            let restore: RestoreOptions = serde_json::from_str(json).unwrap();
            let capture: CaptureOptions = serde_json::from_str(json).unwrap();
            assert_eq!(
                (restore.base.as_slice(), &capture.base),
                (&to_texts(bases)[..], &restore.base)
            );
            let written = serde_json::to_value(&restore).unwrap()["base"].clone();
            match bases {
                [] => assert!(written.is_null()),
                [one] => assert_eq!(written, *one),
                several => assert_eq!(written, serde_json::json!(several)),
            }
            assert_eq!(serde_json::to_value(&capture).unwrap()["base"], written);
        }
        let error = serde_json::from_str::<RestoreOptions>(r#"{"base":7}"#).unwrap_err();
        assert!(error.to_string().contains("base is an image"), "{error}");
    }

    fn to_texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn more_bases_than_a_chain_has_are_refused() {
        let base = vec!["a".to_owned(); crate::MAX_BASES + 1];
        let error =
            RestoreOptions { base: base.clone(), ..Default::default() }.check().unwrap_err();
        assert!(error.contains("base"), "{error}");
        let error = CaptureOptions { base, ..Default::default() }.check().unwrap_err();
        assert!(error.contains("base"), "{error}");
    }
}
