//! What the names of images end in. A name says which kind of file it is: agent and controller refuse the same ones, the controller
//! before a machine is restarted for a capture.

/// What the name of a whole image ends in.
pub const IMAGE_SUFFIX: &str = ".img.zst";
/// What the name of a delta image ends in.
pub const DELTA_SUFFIX: &str = ".imgd";

/// Whether a capture may make an image of this name. `is_delta`: it is to keep the difference to another image.
///
/// # Errors
/// What is wrong with the name, and what to do.
pub fn check_capture_name(name: &str, is_delta: bool) -> Result<(), String> {
    let says_delta = name.ends_with(DELTA_SUFFIX);
    if is_delta && !says_delta {
        return Err(format!(
            "with a base the image's name must end in {DELTA_SUFFIX}, not as {name}: stock tools cannot unpack it"
        ));
    }
    if says_delta && !is_delta {
        return Err(format!(
            "{name} ends in {DELTA_SUFFIX}, as the difference to another image does: give --base (in a job, base) with that image"
        ));
    }
    if says_raw_disk(name) {
        return Err(format!(
            "{name} is the name of a raw disk, and a capture makes an image: end the name in {IMAGE_SUFFIX}"
        ));
    }
    Ok(())
}

/// `.img` does not say it: all kinds of images are called so.
fn says_raw_disk(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".raw", ".dd", ".gz"].iter().any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_in_the_file() {
        for (name, is_delta) in
            [("a.img.zst", false), ("a.img", false), ("a", false), ("a.imgd", true)]
        {
            assert_eq!(check_capture_name(name, is_delta), Ok(()), "{name}");
        }
        for (name, is_delta, says) in [
            ("a.img.zst", true, DELTA_SUFFIX),
            ("a.imgd", false, "base"),
            ("a.raw", false, IMAGE_SUFFIX),
            ("a.IMG.GZ", false, IMAGE_SUFFIX),
            ("sda.dd", false, IMAGE_SUFFIX),
        ] {
            let error = check_capture_name(name, is_delta).unwrap_err();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
    }
}
