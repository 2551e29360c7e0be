//! Makes the client: region, endpoint, credentials, time-outs.

use super::S3Store;
use crate::error::{Error, Kind, Result, fail};
use crate::store::Options;
use crate::store::url::S3Spec;
use aws_config::meta::region::RegionProviderChain;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{Builder, ProvideCredentials, StalledStreamProtectionConfig, retry::RetryConfig};
use aws_sdk_s3::types::StorageClass;

/// The region when nothing names one: what servers other than Amazon's expect by default.
const REGION: &str = "us-east-1";

impl S3Store {
    /// Makes the client and looks whether there are credentials. The bucket itself is not asked yet.
    pub(in crate::store) async fn open(spec: &S3Spec, opts: &Options) -> Result<S3Store> {
        let config = load(spec, opts).await?;
        let Some(credentials) = config.credentials_provider() else { return fail(Kind::Denied, NO_CREDENTIALS) };
        if let Err(e) = credentials.provide_credentials().await {
            return Err(Error::with_source(Kind::Denied, NO_CREDENTIALS, e));
        }
        let custom = config.endpoint_url().is_some() || endpoint_in_env() || spec.endpoint.is_some();
        let grace = StalledStreamProtectionConfig::enabled().upload_enabled(true).grace_period(opts.read_timeout).build();
        let builder = Builder::from(&config)
            .force_path_style(spec.path_style.unwrap_or(custom))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(grace);
        Ok(S3Store {
            client: Client::from_conf(builder.build()),
            bucket: spec.bucket.clone(),
            prefix: spec.prefix.clone(),
            storage_class: spec.storage_class.as_deref().map(StorageClass::from),
            kms_key: spec.kms_key.clone(),
            first_byte: opts.read_timeout,
        })
    }
}

const NO_CREDENTIALS: &str = "no AWS credentials were found or could be refreshed; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and \
    AWS_SECRET_ACCESS_KEY, or sign in with `aws sso login`";

fn endpoint_in_env() -> bool {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().any(|v| std::env::var_os(v).is_some_and(|e| !e.is_empty()))
}

async fn load(spec: &S3Spec, opts: &Options) -> Result<SdkConfig> {
    // The SDK's read time-out would count a body that is being sent: `S3Store::ask` and `layers::Timeout` bound requests.
    let timeouts = TimeoutConfig::builder().connect_timeout(opts.connect_timeout).build();
    let app = AppName::new("smpfs").map_err(|e| Error::with_source(Kind::Bug, "the name of the client", e))?;
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts).app_name(app);
    if let Some(profile) = &spec.profile {
        loader = loader.profile_name(profile);
    }
    let region = RegionProviderChain::first_try(spec.region.clone().map(Region::new));
    let region = match spec.endpoint.is_some() || endpoint_in_env() {
        // Not Amazon's: the instance metadata, which may take seconds to be absent, has nothing to say.
        true => region
            .or_else(aws_config::environment::region::EnvironmentVariableRegionProvider::new())
            .or_else(profile_region(spec))
            .or_else(Region::from_static(REGION)),
        false => region.or_default_provider().or_else(Region::from_static(REGION)),
    };
    loader = loader.region(region);
    if let Some(endpoint) = &spec.endpoint {
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return fail(Kind::Invalid, "an S3 endpoint is written https://host or https://host:port");
        }
        loader = loader.endpoint_url(endpoint);
    }
    Ok(loader.load().await)
}

fn profile_region(spec: &S3Spec) -> aws_config::profile::region::ProfileFileRegionProvider {
    let builder = aws_config::profile::region::ProfileFileRegionProvider::builder();
    match &spec.profile {
        Some(p) => builder.profile_name(p).build(),
        None => builder.build(),
    }
}
