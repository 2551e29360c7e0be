//! Bounds on what a server may send. The SDK collects every answer but the bytes of an object as a whole, errors too: without a
//! bound, a hostile server fills the memory.

use aws_sdk_s3::config::interceptors::{BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use http_body_util::Limited;

/// Longest answer that is no object. A listing of a thousand of the longest keys, every byte escaped, has less.
pub(super) const MAX_ANSWER: usize = 8 << 20;

/// Puts the bound around every answer that the SDK collects.
#[derive(Debug)]
pub(super) struct Bounded;

/// Noted when the request asks for the bytes of an object: those are bounded by who reads them, against what was asked for.
#[derive(Debug)]
struct AsksForObject;

impl Storable for AsksForObject {
    type Storer = StoreReplace<AsksForObject>;
}

impl Intercept for Bounded {
    fn name(&self) -> &'static str {
        "Bounded"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // So the SDK marks the operation in the address of every request of this kind.
        if context.request().uri().contains("x-id=GetObject") {
            cfg.interceptor_state().store_put(AsksForObject);
        }
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let answer = context.response_mut();
        if cfg.load::<AsksForObject>().is_some() && answer.status().is_success() {
            return Ok(());
        }
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        *answer.body_mut() = SdkBody::from_body_1_x(Limited::new(body, MAX_ANSWER));
        Ok(())
    }
}
