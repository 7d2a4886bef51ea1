variable "name" {
  description = "Name of the cluster; also the value of the tag karpenter.sh/discovery and the prefix of its roles."
  type        = string
  default     = "hardcase"
}

variable "kubernetes_version" {
  description = "Version of Kubernetes, as EKS names it."
  type        = string
  default     = "1.34"

  validation {
    condition     = can(regex("^1\\.(3[3-9]|[4-9][0-9])$", var.kubernetes_version))
    error_message = "kubernetes_version: give one as EKS names it, 1.33 or newer, such as \"1.34\"; go up one minor version at a time (docs/how-to/provision-aws.md, EKS is upgraded)."
  }
}

variable "addon_versions" {
  description = "Versions of EKS's add-ons, each pinned; those of kube-proxy belong to the version of Kubernetes."
  type        = map(string)
  default = {
    vpc-cni                = "v1.20.5-eksbuild.1"
    kube-proxy             = "v1.34.1-eksbuild.2"
    coredns                = "v1.12.4-eksbuild.1"
    eks-pod-identity-agent = "v1.3.10-eksbuild.2"
    aws-ebs-csi-driver     = "v1.54.0-eksbuild.1"
    aws-efs-csi-driver     = "v2.1.15-eksbuild.1"
  }

  validation {
    condition     = toset(keys(var.addon_versions)) == toset(["vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent", "aws-ebs-csi-driver", "aws-efs-csi-driver"])
    error_message = "addon_versions: name all of vpc-cni, kube-proxy, coredns, eks-pod-identity-agent, aws-ebs-csi-driver and aws-efs-csi-driver, and nothing else; aws eks describe-addon-versions lists versions."
  }
  validation {
    condition     = alltrue([for version in values(var.addon_versions) : can(regex("^v[0-9]+\\.[0-9]+\\.[0-9]+-eksbuild\\.[0-9]+$", version))])
    error_message = "addon_versions: pin each in full, such as \"v1.20.5-eksbuild.1\", never \"latest\"; aws eks describe-addon-versions lists them."
  }
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "vpc_cidr" {
  description = "Its range: where database and file system are."
  type        = string
}

variable "node_subnet_ids" {
  description = "Subnets of nodes, by zone."
  type        = map(string)
}

variable "control_plane_subnet_ids" {
  description = "Subnets of the control plane's interfaces."
  type        = list(string)
}

variable "public_access_cidrs" {
  description = "Ranges from which the API may be reached over the internet; none by default: it is reached inside the VPC only."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.public_access_cidrs : can(cidrhost(cidr, 0)) && try(tonumber(split("/", cidr)[1]) >= 16, false)])
    error_message = "public_access_cidrs: name the ranges of your own offices, /16 or narrower, such as 198.51.100.0/24; never 0.0.0.0/0."
  }
}

variable "admin_role_arns" {
  description = "IAM roles that administer the cluster. Nobody else does, not even the role that makes it."
  type        = list(string)

  validation {
    condition     = length(var.admin_role_arns) > 0 && alltrue([for arn in var.admin_role_arns : can(regex("^arn:[a-z-]+:iam::[0-9]{12}:role/", arn))])
    error_message = "admin_role_arns: name at least one role, such as arn:aws:iam::111122223333:role/platform-admin, or nobody can enter the cluster."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts Secrets in etcd, logs of the control plane and the queue."
  type        = string
}

variable "log_days" {
  description = "Days for which logs of the control plane are kept; one of the numbers that CloudWatch takes."
  type        = number
  default     = 365
}

variable "system_instance_types" {
  description = "Instance types of the nodes where Karpenter, CoreDNS and the operators run."
  type        = list(string)
  default     = ["m7i.large", "m6i.large"]
}

variable "system_nodes" {
  description = "How many of them: least and most."
  type        = object({ min = number, max = number })
  default     = { min = 2, max = 4 }

  validation {
    condition     = var.system_nodes.min >= 2 && var.system_nodes.max >= var.system_nodes.min
    error_message = "system_nodes: at least two, for Karpenter and CoreDNS run in pairs, and max not below min: { min = 2, max = 4 }."
  }
}

variable "gpu_node_groups" {
  description = <<-EOT
    Node groups with GPUs, by name, beside Karpenter's pools: for capacity that is reserved, or EFA. None is needed.
    instance_type: one of those in gpu-types.tf, which know GPU memory and network cards. zone: nodes of a group lie in one.
    capacity: ON_DEMAND, SPOT or CAPACITY_BLOCK. reservation: of a capacity block or an on-demand reservation, cr-….
    efa: an EFA interface for each network card, and a placement group.
  EOT
  type = map(object({
    instance_type = string
    zone          = string
    capacity      = optional(string, "ON_DEMAND")
    reservation   = optional(string)
    max           = optional(number, 1)
    min           = optional(number, 0)
    efa           = optional(bool, false)
  }))
  default = {}

  validation {
    condition     = alltrue([for group in var.gpu_node_groups : contains(keys(local.gpu_types), group.instance_type)])
    error_message = "gpu_node_groups: ${join(", ", distinct([for group in var.gpu_node_groups : group.instance_type if !contains(keys(local.gpu_types), group.instance_type)]))} is no GPU type known here; take one of ${join(", ", keys(local.gpu_types))}, or add yours to modules/cluster/gpu-types.tf."
  }
  validation {
    condition     = alltrue([for group in var.gpu_node_groups : contains(keys(var.node_subnet_ids), group.zone)])
    error_message = "gpu_node_groups: each zone has to be one of the network's (${join(", ", keys(var.node_subnet_ids))})."
  }
  validation {
    condition     = alltrue([for group in var.gpu_node_groups : contains(["ON_DEMAND", "SPOT", "CAPACITY_BLOCK"], group.capacity)])
    error_message = "gpu_node_groups: capacity is ON_DEMAND, SPOT or CAPACITY_BLOCK."
  }
  validation {
    condition     = alltrue([for group in var.gpu_node_groups : group.capacity != "CAPACITY_BLOCK" || group.reservation != null])
    error_message = "gpu_node_groups: a group on a CAPACITY_BLOCK names its reservation, cr-…; aws ec2 purchase-capacity-block gives it."
  }
  validation {
    condition     = alltrue([for group in var.gpu_node_groups : group.min >= 0 && group.max >= 1 && group.min <= group.max && group.max <= 16])
    error_message = "gpu_node_groups: min from 0, max from 1 to 16, min not above max; a GPU node left on costs tens of dollars an hour."
  }
  validation {
    condition     = alltrue([for group in var.gpu_node_groups : !group.efa || try(local.gpu_types[group.instance_type].efa, 1) > 0])
    error_message = "gpu_node_groups: efa is true for a type without EFA; leave it out, or take a larger type."
  }
}
