use emlx_cpu::internals::keys::{Key, Number};
use emlx_cpu::Type;
use half::{bf16, f16};

fn ordered<T: Number + PartialEq>(upwards: &[T]) {
    for pair in upwards.windows(2) {
        assert!(pair[0].key() < pair[1].key());
    }
    for x in upwards {
        assert!(T::of_key(x.key()) == *x);
    }
}

macro_rules! floats_are_ordered {
    ($($float:ty),+) => { $(
        let (inf, tiny) = (<$float>::INFINITY, <$float>::from_bits(1));
        let (zero, one) = (<$float>::from_bits(0), <$float>::from_bits(inf.to_bits() / 2));
        ordered(&[-inf, <$float>::MIN, -one, -tiny, zero, tiny, one, <$float>::MAX, inf]);
        assert_eq!((-zero).key(), zero.key());
        assert!((-zero).is_negative_zero() && !zero.is_negative_zero());
        for nan in [<$float>::NAN, -<$float>::NAN] {
            assert_eq!(nan.key(), Key::MAX);
        }
        assert!(<$float>::of_key(Key::MAX).is_nan());
    )+ };
}

#[test]
fn keys_have_the_order_of_their_numbers() {
    ordered(&[0u8, 1, 200, 255]);
    ordered(&[i8::MIN, -1, 0, 1, i8::MAX]);
    ordered(&[i64::MIN, -1, 0, 1, i64::MAX]);
    floats_are_ordered!(f16, bf16, f32, f64);
    assert_eq!(Type::Bf16.size(), 2);
    assert!(Type::F16.is_float() && !Type::Bool.is_float());
}
